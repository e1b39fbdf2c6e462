"""The logits of K teachers: read from the cache or from files, or computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from kd_core.data.dataset import Split
from kd_core.data.recipes import Pixels
from kd_core.data.views import Augmentation, EpochPlan
from kd_core.errors import UserError
from kd_core.models.features import Layers, WithFeatures
from kd_core.models.predict import Images, Predictor
from kd_core.teachers import dry_run
from kd_core.teachers.cache import GIGABYTE, CachedTeacher, Store, free_gigabytes, logits_folder, open_store
from kd_core.teachers.load import Reordered, Teacher
from kd_methods import TeacherOutputs
from kd_methods._features import FeatureTerm
from kd_methods.feature_losses._base import Classifier


class TeacherLogits:
    """The logits of K frozen teachers.

    A network is built and moved to the device when it first runs; with a complete cache it never is.
    """

    def __init__(self, teachers: list[Teacher], predict: Predictor):
        self.members, self._predict = teachers, predict
        self._networks: dict[int, nn.Module] = {}
        self._cached: list[CachedTeacher | None] = [None] * len(teachers)
        self._finite: Tensor | None = None
        self.sources: list[WithFeatures] = []  # the networks, where they give features
        self.classifiers: tuple[Classifier, ...] | None = None  # their last linear layers, where a loss needs these

    def __len__(self) -> int:
        return len(self.members)

    def begin_epoch(self, plan: EpochPlan) -> None:
        """Look up what the cache holds for an epoch; called before its first step."""
        for cached in filter(None, self._cached):
            cached.begin_epoch(plan.whole(cached.index_device))

    @torch.no_grad()
    def __call__(self, plan: EpochPlan, step: int, images: Pixels) -> Tensor:
        """Logits float32 [K,B,C] of the images of one step, after `begin_epoch`.

        Each teacher gets its own view.  All values are rounded to fp16, as in the cache, so cached and computed logits
        are equal.
        """
        ids = plan.batch(step, images.device).ids
        logits = []
        for index, cached in enumerate(self._cached):
            compute = partial(self._compute, index, images, ids, shared=self.members[index].view == "shared")
            logits.append(compute() if cached is None else cached(step, images.device, compute))
        rounded = torch.stack(logits).float()
        self._note_finite(rounded.isfinite().flatten(1).all(1))
        return rounded

    def _note_finite(self, finite: Tensor) -> None:
        """Remember which teachers, bool [K], gave values in a step that are all finite."""
        self._finite = finite if self._finite is None else self._finite & finite

    # ------------------------------------------------------------------------------------------------- features

    def give_features(self, layers: Layers) -> list[WithFeatures]:
        """Let `outputs` give what `kd.features` needs of each teacher; the networks, which tell the shapes.

        UserError names a teacher without such layers.
        """
        for index, wanted in enumerate(layers.teachers):
            teacher, network = self.members[index], self._network(index)
            plain = network.network if isinstance(network, Reordered) else network
            assert teacher.views is not None
            who = f"teachers[{index}] {teacher.name!r}"
            source = WithFeatures(plain, wanted, teacher.views.size, who, layers.teacher_head[index])
            if source.classifier:
                order = network.order if isinstance(network, Reordered) else slice(None)
                weight, bias = (values.detach()[order].half().float() for values in source.classifier)
                self.classifiers = (*(self.classifiers or ()), (weight, bias))
            self.sources.append(source)
        return self.sources

    @torch.no_grad()
    def outputs(self, plan: EpochPlan, step: int, images: Pixels, term: FeatureTerm | None) -> TeacherOutputs:
        """What the method gets of the teachers for the images of one step, after `begin_epoch`.

        With a feature `term`, each network runs once, for its logits and for what the term keeps of its features. All
        of it is rounded to fp16, as a cache holds it.
        """
        if term is None:
            return TeacherOutputs(self(plan, step, images))
        ids = plan.batch(step, images.device).ids
        found = [self._compute_all(index, images, ids, term) for index in range(len(self))]
        logits = torch.stack([own for own, _ in found]).float()
        kept = [[tuple(map(_in_fp32, values)) for values in own] for _, own in found]
        finite = [_all_finite([own, *chain(*entries)]) for own, entries in zip(logits, kept, strict=True)]
        self._note_finite(torch.stack(finite))
        return TeacherOutputs(logits, classifiers=self.classifiers, kept=tuple(zip(*kept, strict=True)))

    @torch.inference_mode()
    def _compute_all(
        self, index: int, images: Pixels, view_ids: Tensor, term: FeatureTerm
    ) -> tuple[Tensor, tuple[tuple[Tensor, ...], ...]]:
        """Logits fp16 [B,C] of a teacher and, for each entry of `term`, what it keeps of the features, fp16."""
        network, source = self._network(index), self.sources[index]
        view = self._view(index, images, view_ids, shared=self.members[index].view == "shared")
        accelerator = self._predict.accelerator
        with accelerator.autocast():
            logits, features = source(view)
        if isinstance(network, Reordered):
            logits = network.in_order(logits)
        with torch.autocast(accelerator.device.type, enabled=False):
            kept = term.keep_of(index, tuple(values.float() for values in features))
        return logits.half(), tuple(tuple(map(_in_fp16, values)) for values in kept)

    def _network(self, index: int) -> nn.Module:
        if index not in self._networks:
            network = self._predict.prepare(self.members[index].model)
            dry_run.check_teacher(network, self.members[index], self._predict)
            self._networks[index] = network
        return self._networks[index]

    @torch.inference_mode()
    def _compute(
        self,
        index: int,
        images: Pixels,
        view_ids: Tensor,
        positions: Tensor | None = None,
        *,
        shared: bool,
    ) -> Tensor:
        """Logits fp16 [B,C] of images, or of those at `positions`.

        `shared`: the teacher gets the views `view_ids` int64 [B]; else the clean view.
        """
        if positions is not None:
            images, view_ids = images[positions], view_ids[positions]
        network, view = self._network(index), self._view(index, images, view_ids, shared=shared)
        with self._predict.accelerator.autocast():
            return network(view).half()

    def _view(self, index: int, images: Pixels, view_ids: Tensor, *, shared: bool) -> Tensor:
        """What a teacher sees of images: views `view_ids` int64 [B] if `shared`, else clean."""
        views, channels_last = self.members[index].views, self._predict.config.training.channels_last
        assert views is not None
        if shared:
            return views.train(images.shown, view_ids, channels_last=channels_last)
        return views.clean(images.stored, channels_last=channels_last)

    def hit_rate(self) -> float:
        """The fraction of teacher logits since the last call that were read instead of computed.

        Waits until the computed ones are written to the cache.
        """
        rates = [cached.hit_rate() if cached else 0.0 for cached in self._cached]
        return sum(rates) / len(rates) if rates else 0.0

    def describe_nonfinite(self) -> str:
        """Which teachers gave values that are not finite, on any process, for a message; empty if none did.

        All processes call this together.
        """
        if self._finite is None:
            return ""
        bad = self._predict.accelerator.reduce(self._finite.logical_not().float()).tolist()
        what = "logits or features" if self.sources else "logits"
        return "; ".join(
            f"teachers[{index}] {teacher.name!r} gave {what} that are not finite or too large for fp16"
            for index, teacher in enumerate(self.members)
            if bad[index]
        )

    def clean_logits(self, images: Images, label: str, *, keep: bool = True) -> Tensor | None:
        """Clean-view logits float32 [K,n,C] of a split; None without teachers.

        Args:
            label: begins the label of the progress bars.
            keep: store the logits in the cache.  Without it, an existing store of the training split is still read.

        Raises:
            UserError: logits that are not finite, or too large for fp16.
        """
        everything = []
        for index, teacher in enumerate(self.members):
            title = f"{label} teacher {index} ({teacher.name})"
            training = self._cached[index]
            stored = keep or (training is not None and not training.per_view)
            if teacher.file:
                own = teacher.file.clean(images.split)
            elif self._predict.config.cache.mode == "off" or not stored:
                assert teacher.views is not None
                own = self._predict(self._network(index), images, teacher.views, title).half()
            else:
                clean = self._open_store(teacher, images, views=1, shared=False)
                self._fill(index, clean, images, title)
                own = clean.store.read(images.split.rows)
            everything.append(own.to(images.labels.device).float())
            if not bool(everything[-1].isfinite().all()):
                raise _not_finite(teacher)
        return torch.stack(everything) if everything else None

    # -------------------------------------------------------------------------------------------------- cache

    def open_caches(self, images: Images, notify: Callable[[str], None]) -> None:
        """Open the caches of the logits for training `images` as `cache.mode` says, and fill those of known views."""
        config, device = self._predict.config, self._predict.accelerator.device
        self.open_files(images.split)
        if getattr(config.kd, "features", []):
            if config.cache.mode == "auto":
                notify("teachers run in every step: kd.features needs their features, which the cache does not hold")
            return
        mode = self._mode(images, notify)
        for index, teacher in enumerate(self.members):
            per_view = teacher.view == "shared"
            if teacher.file or mode == "off" or (per_view and mode == "clean"):
                continue
            views = 1 if not per_view else config.cache.views if mode == "fixed" else self._all_views
            cached = self._cached[index] = self._open_store(teacher, images, views=views, shared=per_view)
            if mode == "fixed" or not per_view:
                self._fill(index, cached, images, f"caching teacher {index} ({teacher.name})")
        for cached in filter(None, self._cached):
            cached.keep_on(device, images.split.rows)

    def open_files(self, split: Split) -> None:
        """Open the teachers that are files of logits; UserError if their views are not those of training."""
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

    def _mode(self, images: Images, notify: Callable[[str], None]) -> str:
        """The cache mode; `auto` chooses by the free space, and says why the teachers of shared views run."""
        cache, count, rows = self._predict.config.cache, self._all_views, len(images.split.labels)
        shared = [teacher for teacher in self.members if teacher.view == "shared" and not teacher.file]
        if cache.mode != "auto" or not shared:
            return "clean" if cache.mode == "auto" else cache.mode
        gigabytes = {
            views: sum(Store.size(views, rows, teacher.num_classes) for teacher in shared) / GIGABYTE
            for views in (count, cache.views)
        }
        room = min(cache.max_gb, free_gigabytes(cache.folder))
        if images.recipe:
            named = ", ".join(f"augment.{name}" for name in images.recipe.settings.operations)
            notify(
                f"teachers run in every step: hardly any view of {named} comes back; cache.mode=fixed, with "
                f"{cache.views} views of each image, would take {gigabytes[cache.views]:.1f} GB (there is room for "
                f"{room:.4g}), and run no teacher once they are filled"
            )
            return "clean"
        if gigabytes[count] <= room:
            return "lazy"
        notify(
            f"teachers run in every step: all {count} views of the images would take {gigabytes[count]:.1f} "
            f"GB, there is room for {room:.4g} (cache.max_gb is {cache.max_gb:g}); cache.mode=fixed would take "
            f"{gigabytes[cache.views]:.1f} GB"
        )
        return "clean"

    def _open_store(self, teacher: Teacher, images: Images, *, views: int, shared: bool) -> CachedTeacher:
        """The store of a teacher's logits of a split: `views` augmented views if `shared`, else the clean view."""
        config, accelerator = self._predict.config, self._predict.accelerator
        training, split = config.training, images.split
        assert teacher.views is not None
        seen: Any = "clean"
        if shared:
            fixed = views if config.cache.mode == "fixed" else None
            made = images.recipe.key() if images.recipe else asdict(Augmentation.of(config.data))
            seen = {**made, "fixed": fixed}
        parts = {
            "teacher": teacher.digest,
            "preprocess": teacher.views.recipe(accelerator.device),
            "images": split.fingerprint,
            "view": seen,
            # rounding depends on these
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
        """Compute the logits of a split that a store lacks, each process its share; all processes call this together.

        If several runs need the same store, one fills it while the others wait.
        """
        accelerator, config = self._predict.accelerator, self._predict.config
        store, rows = cached.store, images.split.rows
        assert isinstance(store, Store)
        slots = (torch.arange(store.views)[:, None] * store.rows + rows).flatten()

        def compute(lacking: Tensor, batch_size: int) -> None:
            hidden = not accelerator.is_main_process
            parts = lacking.split(batch_size) if len(lacking) else ()
            for part in tqdm(parts, desc=label, leave=False, disable=hidden or None):
                if len(part) == 1:  # kernels may round a single image differently from a batch
                    part = torch.cat([part, slots[slots != part][:1]])
                rows, numbers = part % store.rows, part // store.rows
                pixels, ids = images.show_fixed(rows, numbers, Augmentation.of(config.data))
                logits = self._compute(index, pixels, ids, shared=cached.per_view).cpu()
                if not bool(logits.isfinite().all()):
                    raise _not_finite(self.members[index])
                cached.keep(part, logits)

        def fill(lacking: Tensor) -> None:
            self._predict.in_batches(partial(compute, lacking))

        with ExitStack() as cleanup:
            if accelerator.is_main_process:  # main process only: per-node locks on a shared folder would deadlock
                cleanup.callback(store.lock(tqdm.write).release)
            accelerator.wait_for_everyone()
            lacking = store.missing(slots)
            if accelerator.is_main_process:
                cached.report_damage(lacking)
            accelerator.wait_for_everyone()  # nobody fills before all know what is missing
            fill(lacking[accelerator.process_index :: accelerator.num_processes])
            accelerator.wait_for_everyone()
            if accelerator.is_local_main_process:
                fill(store.missing(slots))  # the shares of other machines, if they do not share the folder
            accelerator.wait_for_everyone()


def _in_fp16(values: Tensor) -> Tensor:
    return values.half() if values.is_floating_point() else values


def _in_fp32(values: Tensor) -> Tensor:
    """A copy outside of inference mode, in which autograd can keep it."""
    return values.float() if values.is_floating_point() else values.clone()


def _all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether all values of all tensors are finite, bool []."""
    return torch.stack([values.isfinite().all() for values in tensors]).all()


def _not_finite(teacher: Teacher) -> UserError:
    return UserError(
        f"teachers[{teacher.index}] {teacher.name!r}: gives logits that fp16 cannot hold or that are not finite; its "
        "weights may be damaged, or it was trained with another normalization"
    )
