"""The logits of K teachers, and what feature losses need of their layers: read from the cache or files, or computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from kd_core.config import RecipeConfig
from kd_core.data.dataset import Split
from kd_core.data.plan import EpochPlan
from kd_core.data.recipes import Pixels
from kd_core.data.views import Augmentation
from kd_core.errors import UserError
from kd_core.models.layer_features import Layers, WithFeatures
from kd_core.models.predict import Images, Predictor, progress
from kd_core.teachers import dry_run
from kd_core.teachers.cache import (
    GIGABYTE,
    CachedTeacher,
    Store,
    logits_folder,
    open_store,
    room_for,
)
from kd_core.teachers.kept_features import FeatureFacts, Kept, KeptFacts
from kd_core.teachers.load import Reordered, Teacher
from kd_methods import TeacherOutputs
from kd_methods._feature_term import FeatureTerm
from kd_methods.feature_losses._base import Classifier

MODES = ("fixed", "lazy", "clean", "off")  # of the cache, each with less than the one before


def agreed(mode: Callable[[], str]) -> str:
    """The cache mode for all processes, whose machines may have unlike room: the one with least; UserError of any."""
    own, mistake = "off", ""
    try:
        own = mode()
    except UserError as error:
        mistake = str(error)
    found = gather_object([(own, mistake)])
    if mistakes := [text for _, text in found if text]:
        raise UserError(mistakes[0])
    return max((each for each, _ in found), key=MODES.index)


class TeacherLogits:
    """The logits of K frozen teachers.

    A network is built and moved to the device when it first runs; with a complete cache it never is.
    """

    def __init__(self, teachers: list[Teacher], predict: Predictor):
        self.members, self._predict = teachers, predict
        self._networks: dict[int, nn.Module] = {}
        self._recipe: RecipeConfig = predict.config.augment  # of the views that the teachers see
        self._first: TeacherLogits | None = None  # for second views: that of the first, which shares cache.max_gb
        self._gigabytes_taken = 0.0  # by the caches for training, once these are full
        self._cached: list[CachedTeacher | None] = [None] * len(teachers)
        self._finite: Tensor | None = None
        self._sources: dict[int, WithFeatures] = {}  # the networks, where they give features
        self.facts: list[FeatureFacts] = []  # what is known of these features without the networks
        self._layers: Layers
        self._kept: list[Kept] = []  # what feature losses keep of each
        self._term: FeatureTerm
        self.classifiers: tuple[Classifier, ...] | None = None  # their last linear layers, where a loss needs these

    def of_second_views(self) -> TeacherLogits:
        """The same networks, for the logits of second views, which have a cache of their own."""
        assert self._predict.config.augment.second is not None
        members = [replace(one, views=one.views and one.views.without_crops()) for one in self.members]
        second = TeacherLogits(members, self._predict)
        second._networks, second._recipe = self._networks, self._predict.config.augment.second
        second._first = self
        return second

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
        finite = rounded.isfinite().flatten(1).all(1)
        self._finite = finite if self._finite is None else self._finite & finite
        return rounded

    # ------------------------------------------------------------------------------------------------- features

    def give_features(self, layers: Layers) -> list[FeatureFacts]:
        """Let the teachers give the features that `kd.features` names; what is known of these, such as their shapes.

        A network is built for it where the cache does not tell.  UserError names a teacher without such layers.
        """
        self._layers = layers
        self.facts = [self._facts_of(index) for index in range(len(self))]
        device, given = self._predict.accelerator.device, [one.classifier for one in self.facts if one.classifier]
        if given:  # by all teachers: a loss needs it of each
            self.classifiers = tuple((weight.to(device), bias.to(device)) for weight, bias in given)
        return self.facts

    def _facts_of(self, index: int) -> FeatureFacts:
        teacher, layers, cache = self.members[index], self._layers.teachers[index], self._predict.config.cache
        pooled = [layer for own in self._layers.teacher_head[index].values() for layer in own]
        kept = KeptFacts(teacher, cache) if cache.mode != "off" and teacher.digest else None
        facts = kept.find(layers, pooled) if kept else None
        if facts is None:
            facts = FeatureFacts.of(self._source(index), self._network(index))
            if kept:
                kept.add(facts, pooled)
        return facts

    def _source(self, index: int) -> WithFeatures:
        """A teacher's network with its features, built when it first runs."""
        if index not in self._sources:
            teacher, network, layers = self.members[index], self._network(index), self._layers
            plain = network.network if isinstance(network, Reordered) else network
            assert teacher.views is not None
            self._sources[index] = WithFeatures(
                plain, layers.teachers[index], teacher.views.size, teacher.who, layers.teacher_head[index]
            )
        return self._sources[index]

    def keep_for(self, term: FeatureTerm, layers: Layers) -> None:
        """Let `outputs` give what the feature term keeps of each teacher; after `give_features`."""
        self._term, self._kept = term, [Kept.of(term, layers, index) for index in range(len(self))]
        self._finite = torch.ones(len(self), dtype=torch.bool, device=self._predict.accelerator.device)

    @torch.no_grad()
    def outputs(self, plan: EpochPlan, step: int, images: Pixels) -> TeacherOutputs:
        """What the method gets of the teachers for the images of one step, after `begin_epoch`.

        With `keep_for`, a network runs once for its logits and for what is kept of its features.  All values are
        rounded to fp16, as in the cache, so cached and computed ones are equal.
        """
        if not self._kept:
            return TeacherOutputs(self(plan, step, images))
        ids = plan.batch(step, images.device).ids
        logits, kept = [], []
        for index, (cached, rows) in enumerate(zip(self._cached, self._kept, strict=True)):
            compute = partial(self._compute_all, index, images, ids, shared=self.members[index].view == "shared")
            own, *features = compute() if cached is None else cached.everything(step, images.device, compute)
            logits.append(own)
            kept.append(rows.unpack(features))
        return TeacherOutputs(
            torch.stack(logits).float(), classifiers=self.classifiers, kept=tuple(zip(*kept, strict=True))
        )

    @torch.inference_mode()
    def _compute_all(
        self, index: int, images: Pixels, view_ids: Tensor, positions: Tensor | None = None, *, shared: bool
    ) -> list[Tensor]:
        """Logits fp16 [B,C] of a teacher and rows fp16 [B,width] for its stores of features, as `_compute` does."""
        if positions is not None:
            images, view_ids = images[positions], view_ids[positions]
        network, source = self._network(index), self._source(index)
        view = self._view(index, images, view_ids, shared=shared)
        accelerator = self._predict.accelerator
        with accelerator.autocast():
            logits, features = source(view)
        if isinstance(network, Reordered):
            logits = network.in_order(logits)
        with torch.autocast(accelerator.device.type, enabled=False):
            kept = self._term.keep_of(index, tuple(values.float() for values in features))
        values = [logits, *self._kept[index].pack(kept)]
        values = [one.half() for one in values]
        assert self._finite is not None
        self._finite[index] &= torch.stack([one.isfinite().all() for one in values]).all()
        return values

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

    def _compute_logits(self, *args: Any, **more: Any) -> list[Tensor]:
        return [self._compute(*args, **more)]

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
        what = "logits or features" if self.facts else "logits"
        return "; ".join(
            f"teachers[{index}] {teacher.name!r} gave {what} that are not finite or too large for fp16"
            for index, teacher in enumerate(self.members)
            if bad[index]
        )

    def clean_logits(self, images: Images, label: str, *, apart: bool = False) -> Tensor | None:
        """Clean-view logits float32 [K,n,C] of a split; None without teachers.

        Args:
            label: begins the label of the progress bars.
            apart: images are few of their split's: unless training reads clean views, which holds them already, they
                have a small store of their own.

        Raises:
            UserError: logits that are not finite, or too large for fp16.
        """
        everything = torch.empty(0)
        for index, teacher in enumerate(self.members):
            title = f"{label} teacher {index} ({teacher.name})"
            training = self._cached[index]
            whole = not apart or (training is not None and not training.per_view)
            if teacher.file:
                own = teacher.file.clean(images.split)
            elif not self._may_keep(teacher, images):
                assert teacher.views is not None
                own = self._predict(self._network(index), images, teacher.views, title).half()
            else:
                shown = images if whole else images.apart
                clean = self._open_store(teacher, shown, views=1, shared=False)
                self._fill(index, clean, shown, title)
                own = clean.store.read(shown.split.rows)
            if not index:
                shape = (len(self.members), *own.shape)
                everything = torch.empty(shape, dtype=torch.float32, device=images.labels.device)
            everything[index] = own
            if not bool(everything[index].isfinite().all()):
                raise _not_finite(teacher)
        return everything if self.members else None

    def _may_keep(self, teacher: Teacher, images: Images) -> bool:
        """Whether the cache may hold a teacher's clean logits of these images."""
        cache = self._predict.config.cache
        return cache.mode != "off" and Store.size(1, len(images), teacher.num_classes) <= cache.max_gb * GIGABYTE

    # -------------------------------------------------------------------------------------------------- cache

    def open_caches(self, images: Images, notify: Callable[[str], None]) -> None:
        """Open the caches for training `images` as `cache.mode` says, and fill those of known views."""
        device = self._predict.accelerator.device
        self.open_files(images.split)
        mode = agreed(lambda: self._mode(images, notify))
        self._gigabytes_taken = self._gigabytes_in(mode, images.split)
        for index, teacher in enumerate(self.members):
            views = self._views_in(mode, teacher)
            if not views:
                continue
            per_view = teacher.view == "shared"
            cached = self._cached[index] = self._open_store(
                teacher, images, views=views, shared=per_view, kept=self._kept[index] if self._kept else None
            )
            if mode == "fixed" or not per_view:
                self._fill(index, cached, images, f"caching teacher {index} ({teacher.name})")
        for cached in filter(None, self._cached):
            cached.keep_on(device, images.split.rows)

    def _views_in(self, mode: str, teacher: Teacher) -> int:
        """How many views of an image a cache of this mode holds of a teacher; 0: none."""
        if teacher.file:
            return 0
        if teacher.view == "clean":
            return int(mode != "off")
        return {"fixed": self._predict.config.cache.views, "lazy": self._all_views}.get(mode, 0)

    def check_files(self, split: Split) -> None:
        """UserError if teachers are files of logits whose views are not those of training."""
        config = self._predict.config
        fixed = config.cache.views if config.cache.mode == "fixed" else None
        for teacher in self.members:
            if teacher.file:
                teacher.file.check_views(split, Augmentation.of(config.data), fixed)

    def check_mode(self, images: Images) -> None:
        """UserError if the cache mode that is named does not fit, before teachers are trained that are stand-ins here.

        What is stored of these is not known, so the disk's space is looked at where there are none.
        """
        cache, split = self._predict.config.cache, images.split
        if cache.mode != "auto":
            known = all(teacher.digest for teacher in self.members)
            self._require_room(cache.mode, split, self._room(images) if known else cache.max_gb - self._taken_by_first)
            self._gigabytes_taken = self._gigabytes_in(cache.mode, split)

    def open_files(self, split: Split) -> None:
        """Open the teachers that are files of logits; UserError if their views are not those of training."""
        self.check_files(split)
        for index, teacher in enumerate(self.members):
            if teacher.file:
                per_view = teacher.view == "shared"
                self._cached[index] = CachedTeacher(teacher.file.store(split), per_view=per_view, notify=tqdm.write)

    @property
    def _all_views(self) -> int:
        return Augmentation.of(self._predict.config.data).num_views

    @property
    def _what(self) -> str:
        """What the caches hold."""
        return "logits and features" if self._kept else "logits"

    def cache_in_words(self, images: Images) -> str:
        """The cache that training on a split would use and what it takes.  UserError if it does not fit."""
        reasons: list[str] = []
        mode = self._mode(images, reasons.append)
        size = self._gigabytes_in(mode, images.split)
        words = [f"{mode}, up to {size:.3g} GB for the teachers' {self._what}"] if size else []
        return "; ".join(words + reasons) or "none"

    def _mode(self, images: Images, notify: Callable[[str], None]) -> str:
        """The cache mode; `auto` chooses the largest that fits.  UserError if the one that is named does not."""
        named, split, room = self._predict.config.cache.mode, images.split, self._room(images)
        if named != "auto":
            self._require_room(named, split, room)
            return named
        any_shared = any(teacher.view == "shared" and not teacher.file for teacher in self.members)
        for mode in ["lazy"] * any_shared + ["clean"]:
            problem = self._too_large(mode, split, room)
            if not problem:
                return mode
            notify(f"teachers run in every step: {problem}")
        return "off"

    def _views_that_are_new(self, fixed: float, room: float) -> str:
        """Why views of a recipe are not kept as they come, in words; empty without one.  Sizes in gigabytes."""
        is_second = self._recipe is not self._predict.config.augment
        named = ", ".join(f"augment.{name}" for name in self._recipe.operations)
        named = "augment.second" if is_second else named
        return named and (
            f"hardly any view of {named} comes back; cache.mode=fixed, with {self._predict.config.cache.views} views "
            f"of each image, would take {fixed:.3g} GB, and there is room for {room:.4g}"
        )

    def _room(self, images: Images) -> float:
        """Gigabytes for the caches of the teachers, with what these take already."""
        cache = self._predict.config.cache
        views = ("clean", self._drawn(images, cache.views))
        parts = [self._parts(own, images.split, seen) for own in self.members if own.views for seen in views]
        room = room_for(logits_folder(cache.folder), cache.max_gb, parts)
        return min(cache.max_gb - self._taken_by_first, room)

    @property
    def _taken_by_first(self) -> float:
        return self._first._gigabytes_taken if self._first else 0.0

    def _require_room(self, mode: str, split: Split, room: float) -> None:
        if problem := self._too_large(mode, split, room):
            raise UserError(f"cache.mode: {problem}")

    def _too_large(self, mode: str, split: Split, room: float) -> str:
        """Why the teachers' caches do not fit into `room` gigabytes in this mode, in words; empty if they do."""
        cache, fixed = self._predict.config.cache, self._gigabytes_in("fixed", split)
        several = [teacher.index for teacher in self.members if self._views_in(mode, teacher) > 1]
        if mode == "lazy" and self._kept and any(self._kept[index].has_maps for index in several):
            return (
                "kd.features needs maps or tokens of every view, which lazy does not hold; cache.mode=fixed would take "
                f"{fixed:.3g} GB for {cache.views} views"
            )
        if mode == "lazy" and (reason := self._views_that_are_new(fixed, room)):
            return reason
        wanted = self._gigabytes_in(mode, split)
        if wanted <= room:
            return ""
        clean = self._gigabytes([teacher for teacher in self.members if not teacher.file], 1, split)
        others = {f"fixed with {cache.views} views": fixed, "clean views": clean}
        smaller = " and ".join(f"{words} {size:.3g} GB" for words, size in others.items() if size < wanted)
        larger = f"set cache.max_gb={math.ceil(wanted + self._taken_by_first)}"
        by_disk = room + self._taken_by_first < cache.max_gb
        return (
            f"{mode} would take {wanted:.3g} GB for the teachers' {self._what}, there is room for {room:.4g} "
            f"(cache.max_gb is {cache.max_gb:g}); {'free space on the disk of cache.dir' if by_disk else larger}"
            f"{f'; {smaller}' if smaller else ''}"
        )

    def _gigabytes_in(self, mode: str, split: Split) -> float:
        return sum(self._gigabytes([teacher], self._views_in(mode, teacher), split) for teacher in self.members)

    def _gigabytes(self, teachers: list[Teacher], views: int, split: Split) -> float:
        """What `views` views of a split's images take in the cache."""
        widths = [
            width
            for teacher in teachers
            for width in (teacher.num_classes, *(self._kept[teacher.index].widths if self._kept else ()))
        ]
        return sum(Store.size(views, len(split.rows), width) for width in widths) / GIGABYTE

    def _drawn(self, images: Images, views: int) -> dict[str, Any]:
        """Which augmented views a store holds: all that the settings allow, or in mode `fixed` so many of them."""
        config = self._predict.config
        drawn = images.recipe.key() if images.recipe else asdict(Augmentation.of(config.data))
        return {**drawn, "fixed": views if config.cache.mode == "fixed" else None}

    def _parts(self, teacher: Teacher, split: Split, seen: Any) -> dict[str, Any]:
        """All that a teacher's logits of a split depend on; `seen`: which views."""
        accelerator = self._predict.accelerator
        assert teacher.views is not None
        return {
            "teacher": teacher.digest,
            "preprocess": teacher.views.recipe(accelerator.device),
            "images": split.fingerprint,
            "view": seen,
            # rounding depends on these
            "precision": accelerator.mixed_precision,
            "channels_last": self._predict.config.training.channels_last,
            "device": accelerator.device.type,
        }

    def _open_store(
        self, teacher: Teacher, images: Images, *, views: int, shared: bool, kept: Kept | None = None
    ) -> CachedTeacher:
        """The stores of a teacher's logits, and of its features if they are `kept`, for the images of a split.

        They hold `views` augmented views if `shared`, else the clean view.
        """
        config, split = self._predict.config, images.split
        parts = self._parts(teacher, split, self._drawn(images, views) if shared else "clean")
        view = f"{views} views" if shared else "clean view"

        def opened(width: int, about: str, **more: Any) -> Store:
            return open_store(
                logits_folder(config.cache.folder),
                {**parts, **more},
                views=views,
                rows=len(split.labels),
                classes=width,
                about={"teacher": teacher.name, "view": f"{view}{about}"},
                max_gb=config.cache.max_gb,
                used=len(split.rows),
                notify=tqdm.write,
            )

        features = [
            opened(width, f", layers {', '.join(map(str, made['layers']))}", features=made)
            for width, (_, made) in (zip(kept.widths, kept.rows, strict=True) if kept else ())
        ]
        store = opened(teacher.num_classes, "")
        return CachedTeacher(store, per_view=shared, notify=tqdm.write, features=features)

    @torch.no_grad()
    def _fill(self, index: int, cached: CachedTeacher, images: Images, label: str) -> None:
        """Compute the logits of a split that a store lacks, each process its share; all processes call this together.

        If several runs need the same store, one fills it while the others wait.
        """
        accelerator, config = self._predict.accelerator, self._predict.config
        store, rows = cached.store, images.split.rows
        assert isinstance(store, Store)
        slots = (torch.arange(store.views)[:, None] * store.rows + rows).flatten()
        compute_for = self._compute_all if cached.features else self._compute_logits

        def compute(lacking: Tensor, batch_size: int) -> None:
            hidden = not accelerator.is_main_process
            parts = lacking.split(batch_size) if len(lacking) else ()
            for part in progress(parts, label, hidden=hidden):
                if len(part) == 1:  # kernels may round a single image differently from a batch
                    part = torch.cat([part, slots[slots != part][:1]])
                rows, numbers = part % store.rows, part // store.rows
                crops = Augmentation.of(config.data)
                pixels, ids = images.show_fixed(rows, numbers, crops, shared=cached.per_view)
                computed = compute_for(index, pixels, ids, shared=cached.per_view)
                values = [one.cpu() for one in computed]
                if not all(bool(one.isfinite().all()) for one in values):
                    raise _not_finite(self.members[index], "logits or features" if cached.features else "logits")
                cached.keep(part, *values)

        def fill(lacking: Tensor) -> None:
            self._predict.in_batches(partial(compute, lacking))

        with ExitStack() as cleanup:
            if accelerator.is_main_process:  # main process only: per-node locks on a shared folder would deadlock
                cleanup.callback(store.lock(tqdm.write).release)
            accelerator.wait_for_everyone()
            lacking = cached.missing(slots)
            if accelerator.is_main_process:
                cached.report_damage(lacking)
            accelerator.wait_for_everyone()  # nobody fills before all know what is missing
            together(partial(fill, lacking[accelerator.process_index :: accelerator.num_processes]))
            # the shares of other machines, if they do not share the folder
            together(lambda: fill(cached.missing(slots)) if accelerator.is_local_main_process else None)


def together(work: Callable[[], object]) -> None:
    """Do `work` in all processes, and wait for the others; UserError in all of them if one raises it."""
    mistakes = [""]
    try:
        work()
    except UserError as error:
        mistakes = [str(error)]
    if told := [mistake for mistake in gather_object(mistakes) if mistake]:
        raise UserError(told[0])


def _not_finite(teacher: Teacher, what: str = "logits") -> UserError:
    return UserError(
        f"{teacher.who}: gives {what} that fp16 cannot hold or that are not finite; its "
        "weights may be damaged, or it was trained with another normalization"
    )
