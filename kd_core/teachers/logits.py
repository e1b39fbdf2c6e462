"""K teachers side by side: their logits in training, from the cache or computed, and how good they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kd_core import metrics
from kd_core.data.dataset import Split
from kd_core.data.views import Augmentation, EpochPlan, fixed_view_ids
from kd_core.errors import UserError
from kd_core.evaluation.diagnosis import Finding
from kd_core.models.predict import Images, Predictor
from kd_core.teachers import dry_run
from kd_core.teachers.cache import GIGABYTE, CachedTeacher, Store, free_gigabytes, logits_folder, open_store
from kd_core.teachers.load import EXPOSED, Teacher, exposure


class Panel:
    """K frozen teachers side by side.  A network is built, and brought to the device, when it is first run."""

    def __init__(self, members: list[Teacher], predict: Predictor):
        self.members, self._predict = members, predict
        self._networks: dict[int, nn.Module] = {}
        self._cached: list[CachedTeacher | None] = [None] * len(members)
        self._finite: Tensor | None = None

    def __len__(self) -> int:
        return len(self.members)

    def begin_epoch(self, plan: EpochPlan) -> None:
        """To be called before the steps of an epoch."""
        for cached in filter(None, self._cached):
            cached.begin_epoch(plan.whole(cached.index_device))

    @torch.no_grad()
    def __call__(self, plan: EpochPlan, step: int, images: Tensor) -> Tensor:
        """Logits float32 [K,B,C] for a step, with its images uint8 [B,H,W,3], of an epoch that has begun.

        Each teacher sees its own view.  The values are such that fp16 can hold, as the cache keeps them: so cached and
        computed ones are the same.
        """
        ids = plan.batch(step, images.device).ids
        logits = []
        for index, cached in enumerate(self._cached):
            compute = partial(self._compute, index, images, ids, shared=self.members[index].view == "shared")
            if cached is None:
                own = compute()
            else:
                own = cached(step, images.device, compute)
            logits.append(own)
        rounded = torch.stack(logits).float()
        finite = rounded.isfinite().flatten(1).all(1)
        self._finite = finite if self._finite is None else self._finite & finite
        return rounded

    def _network(self, index: int) -> nn.Module:
        if index not in self._networks:
            network = self._predict.prepare(self.members[index].model)
            dry_run.look_once(network, self.members[index], self._predict)
            self._networks[index] = network
        return self._networks[index]

    @torch.inference_mode()
    def _compute(
        self,
        index: int,
        images: Tensor,
        view_ids: Tensor,
        positions: Tensor | None = None,
        *,
        shared: bool,
    ) -> Tensor:
        """fp16 logits [B,C] of images uint8 [B,H,W,3] (or those at `positions`) in their views, or the clean one."""
        if positions is not None:
            images, view_ids = images[positions], view_ids[positions]
        network, views = self._network(index), self.members[index].views
        assert views is not None
        channels_last = self._predict.config.training.channels_last
        if shared:
            view = views.train(images, view_ids, channels_last=channels_last)
        else:
            view = views.clean(images, channels_last=channels_last)
        with self._predict.accelerator.autocast():
            return network(view).half()

    def hit_rate(self) -> float:
        """The share of teachers' logits that were read instead of computed, since the last call.

        What was computed is in the cache afterwards.
        """
        rates = [cached.hit_rate() if cached else 0.0 for cached in self._cached]
        return sum(rates) / len(rates) if rates else 0.0

    def culprits(self) -> str:
        """Names the teachers that gave logits which are not finite, for a message; empty if none did.

        On any process: all call this together.
        """
        if self._finite is None:
            return ""
        bad = self._predict.accelerator.reduce(self._finite.logical_not().float()).tolist()
        return "; ".join(
            f"teachers[{index}] {teacher.name!r} gave logits that are not finite or too large for fp16"
            for index, teacher in enumerate(self.members)
            if bad[index]
        )

    def logits(self, images: Images, verb: str, *, keep: bool = True) -> Tensor | None:
        """Clean-view logits float32 [K,n,C] of a split, None without teachers.  UserError if they are not finite.

        Without `keep` no store is made for them, as for a few images that are looked at once; one that training has
        opened is read.
        """
        everything = []
        for index, teacher in enumerate(self.members):
            label = f"{verb} teacher {index} ({teacher.name})"
            training = self._cached[index]
            kept = keep or (training is not None and not training.per_view)
            if teacher.file:
                own = teacher.file.clean(images.split)
            elif self._predict.config.cache.mode == "off" or not kept:
                assert teacher.views is not None
                own = self._predict(self._network(index), images, teacher.views, label).half()
            else:
                clean = self._open(teacher, images.split, views=1, shared=False)
                self._fill(index, clean, images, label)
                own = clean.store.read(images.split.rows)
            everything.append(own.to(images.labels.device).float())
            if not bool(everything[-1].isfinite().all()):
                raise _not_finite(teacher)
        return torch.stack(everything) if everything else None

    # ------------------------------------------------------------------------------------------------- caching

    def open_caches(self, images: Images, notify: Callable[[str], None]) -> None:
        """Keep the teachers' logits for training `images` as `cache.mode` says, and compute those that can be now."""
        config, device = self._predict.config, self._predict.accelerator.device
        self.open_files(images.split)
        mode = self._mode(images.split, notify)
        for index, teacher in enumerate(self.members):
            per_view = teacher.view == "shared"
            if teacher.file or mode == "off" or (per_view and mode == "clean"):
                continue
            views = 1 if not per_view else config.cache.views if mode == "fixed" else self._all_views
            cached = self._cached[index] = self._open(teacher, images.split, views=views, shared=per_view)
            if mode == "fixed" or not per_view:
                self._fill(index, cached, images, f"caching teacher {index} ({teacher.name})")
        for cached in filter(None, self._cached):
            cached.keep_on(device, images.split.rows)

    def open_files(self, split: Split) -> None:
        """Open the teachers that are files of logits; UserError if they do not fit what the student will see."""
        config = self._predict.config
        fixed = config.cache.views if config.cache.mode == "fixed" else None
        for index, teacher in enumerate(self.members):
            if teacher.file:
                teacher.file.check_views(split, Augmentation.of(config.data), fixed)
                per_view = teacher.view == "shared"
                self._cached[index] = CachedTeacher(teacher.file.store(split), per_view=per_view, notify=tqdm.write)

    @property
    def _all_views(self) -> int:
        return Augmentation.of(self._predict.config.data).num_views

    def _mode(self, split: Split, notify: Callable[[str], None]) -> str:
        """The cache's mode, which `auto` chooses by the room that there is."""
        cache, count = self._predict.config.cache, self._all_views
        shared = [teacher for teacher in self.members if teacher.view == "shared" and not teacher.file]
        if cache.mode != "auto" or not shared:
            return "clean" if cache.mode == "auto" else cache.mode
        gigabytes = {
            views: sum(Store.size(views, len(split.labels), teacher.num_classes) for teacher in shared) / GIGABYTE
            for views in (count, cache.views)
        }
        room = min(cache.max_gb, free_gigabytes(cache.folder))
        if gigabytes[count] <= room:
            return "lazy"
        notify(
            f"teachers run in every step: all {count} views of the images would take {gigabytes[count]:.1f} "
            f"GB, there is room for {room:.4g} (cache.max_gb is {cache.max_gb:g}); cache.mode=fixed would take "
            f"{gigabytes[cache.views]:.1f} GB"
        )
        return "clean"

    def _open(self, teacher: Teacher, split: Split, *, views: int, shared: bool) -> CachedTeacher:
        """The store of a teacher's logits for a split: of the clean view, or of `views` ones it shares with others."""
        config, accelerator = self._predict.config, self._predict.accelerator
        training = config.training
        assert teacher.views is not None
        seen: Any = "clean"
        if shared:
            fixed = views if config.cache.mode == "fixed" else None
            seen = {**asdict(Augmentation.of(config.data)), "fixed": fixed}
        parts = {
            "teacher": teacher.digest,
            "preprocess": teacher.views.recipe(accelerator.device),
            "images": split.fingerprint,
            "view": seen,
            # what rounding depends on
            "precision": accelerator.mixed_precision,
            "channels_last": training.channels_last,
            "device": accelerator.device.type,
        }
        about = {"teacher": teacher.name, "view": f"{views} views" if shared else "clean view"}
        store = open_store(
            logits_folder(config.cache.folder),
            parts,
            views=views,
            rows=len(split.labels),
            classes=teacher.num_classes,
            about=about,
            max_gb=config.cache.max_gb,
            notify=tqdm.write,
        )
        return CachedTeacher(store, per_view=shared, notify=tqdm.write)

    @torch.no_grad()
    def _fill(self, index: int, cached: CachedTeacher, images: Images, label: str) -> None:
        """Compute what a store lacks for a split, each process its part; all processes call this together.

        Of several runs that want the same store one fills it while the others wait.
        """
        accelerator, config = self._predict.accelerator, self._predict.config
        store, rows = cached.store, images.split.rows
        assert isinstance(store, Store)
        slots = (torch.arange(store.views)[:, None] * store.rows + rows).flatten()

        def compute(lacking: Tensor, batch_size: int) -> None:
            hidden = not accelerator.is_main_process
            parts = lacking.split(batch_size) if len(lacking) else ()
            for part in tqdm(parts, desc=label, leave=False, disable=hidden or None):
                if len(part) == 1:  # a network may round a single image's logits otherwise than a batch's
                    part = torch.cat([part, slots[slots != part][:1]])
                pixels, _ = images.store.gather(part % store.rows)
                ids = fixed_view_ids(
                    part % store.rows,
                    part // store.rows,
                    **asdict(Augmentation.of(config.data)),
                )
                logits = self._compute(index, pixels, ids.to(pixels.device), shared=cached.per_view).cpu()
                if not bool(logits.isfinite().all()):
                    raise _not_finite(self.members[index])
                cached.keep(part, logits)

        def fill(lacking: Tensor) -> None:
            self._predict.in_batches(partial(compute, lacking))

        with ExitStack() as cleanup:
            if accelerator.is_main_process:  # not one process a machine: with a common folder they would wait in a ring
                cleanup.callback(store.lock(tqdm.write).release)
            accelerator.wait_for_everyone()
            lacking = store.missing(slots)
            if accelerator.is_main_process:
                cached.tell_damage(lacking)
            accelerator.wait_for_everyone()  # none fills before all know what is missing
            fill(lacking[accelerator.process_index :: accelerator.num_processes])
            accelerator.wait_for_everyone()
            if accelerator.is_local_main_process:
                fill(store.missing(slots))  # the others' parts, where machines share no folder
            accelerator.wait_for_everyone()

    def judge(self, images: Images) -> Tensor | None:
        """As `logits`, and kept with each teacher, so that nobody computes them twice."""
        new = [teacher for teacher in self.members if teacher.judged is None]
        logits = Panel(new, self._predict).logits(images, "measuring")
        for index, teacher in enumerate(new):
            assert logits is not None
            teacher.judged = logits[index]
        return torch.stack([t.judged for t in self.members if t.judged is not None]) if self.members else None

    def measure(self, logits: Tensor, labels: Tensor) -> list[dict[str, float]]:
        """Metrics of each teacher from logits [K,n,C], then those of their ensemble."""
        return [metrics.classification(own, labels) for own in (*logits, metrics.ensemble_logits(logits))]

    def require_able(
        self, figures: list[dict[str, float]], labels: Tensor, remedies: dict[int, Finding] | None
    ) -> None:
        """UserError that names all teachers near chance, from what `measure` gave.

        `remedies` says what was found to help, by a teacher's place here; None if nobody has looked.
        """
        looked = (
            "--check tries the usual normalisations and class orders for teachers from elsewhere, and says which works"
            if remedies is None
            else "the usual normalisations and class orders were tried for teachers from elsewhere: none helps"
        )
        problems = []
        for place, (teacher, row) in enumerate(zip(self.members, figures[:-1], strict=True)):
            if not near_chance(row["accuracy"], labels):
                continue
            problem = (
                f"teachers[{teacher.index}] {teacher.name!r}: accuracy {row['accuracy']:.2%} on {len(labels)} images "
                "is near chance. "
            )
            if remedies and place in remedies:
                problem += f"{remedies[place].message}: {remedies[place].advice}"
            else:
                problem += (
                    "Usual causes: weights of another data set, classes in another order (teachers[].class_order), "
                    "another normalisation than in its training (teachers[].normalization), another input size "
                    f"(teachers[].img_size); {looked}"
                )
            problems.append(problem)
        if problems:
            raise UserError("\n".join(problems))

    def remarks(self, figures: list[dict[str, float]], images: str) -> list[str]:
        """One line a teacher and one for the ensemble, and a warning where a figure is too good to be true.

        `images` says what they were measured on: validation or training images.
        """
        lines = []
        for teacher, row in zip(self.members, figures[:-1], strict=True):
            index = teacher.index
            lines.append(
                f"teacher {index} {teacher.name}: accuracy {row['accuracy']:.2%} on {images}, {teacher.view} view"
            )
            if teacher.saw_validation in EXPOSED:
                lines.append(
                    f"teacher {index} {EXPOSED[teacher.saw_validation]}, so this figure may say nothing about it "
                    f"(set teachers.{index}.trained_on if you know what it was trained on)"
                )
            if teacher.stated_accuracy is not None and row["accuracy"] > teacher.stated_accuracy + 0.05:
                lines.append(
                    f"teacher {index} is far better here than the {teacher.stated_accuracy:.2%} that its file states: "
                    "it has probably been trained on these validation images"
                )
        lines.append(f"teachers' ensemble: accuracy {figures[-1]['accuracy']:.2%} on {images}")
        if (word := exposure(self.members)) in EXPOSED:
            lines[-1] += f"; a member {EXPOSED[word]}"
        return lines


def teacher_rows(figures: list[dict[str, float]]) -> dict[str, float]:
    """teacher/{i}/val_accuracy and teacher/ensemble/val_accuracy, from what `Panel.measure` gave."""
    names = [*range(len(figures) - 1), "ensemble"] if figures else []
    return {f"teacher/{name}/val_accuracy": row["accuracy"] for name, row in zip(names, figures, strict=True)}


def _not_finite(teacher: Teacher) -> UserError:
    return UserError(
        f"teachers[{teacher.index}] {teacher.name!r}: gives logits that fp16 cannot hold or that are not finite; its "
        "weights may be damaged, or it was trained with another normalization"
    )


def near_chance(accuracy: float, labels: Tensor) -> bool:
    """Whether an accuracy on `labels` could be had by always naming the most frequent class.

    Up to 3 standard errors above that, and at least 2 points or half of it, whichever is less.
    """
    chance = float(labels.bincount().max()) / len(labels)
    return accuracy <= chance + max(3 * math.sqrt(chance * (1 - chance) / len(labels)), min(0.02, chance / 2))
