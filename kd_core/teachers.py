"""Teachers: where their weights come from, what they see, and how good they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import kd_methods
from kd_core import artifacts, metrics, models, student, weights
from kd_core.cache import GIGABYTE, CachedTeacher, Store, free_gigabytes, logits_folder, open_store
from kd_core.config import Config, Layer, TeacherConfig, find_file, read_yaml, resolve
from kd_core.data import Data, Split
from kd_core.errors import UserError
from kd_core.files import read_json
from kd_core.inference import Images, Predictor
from kd_core.views import View, Views, fixed_view_ids, num_views

# What a teacher that is trained on demand takes over from the run that asked for it, and nothing else: the identity
# of the data and of the split, so that a teacher never sees the student's validation images.
INHERITED_DATA = (
    "source",
    "name",
    "subset",
    "revision",
    "path",
    "image_column",
    "label_column",
    "train_split",
    "val_split",
    "test_split",
    "val_size",
    "split_seed",
    "train_size",
    "store_size",
    "allow_unreadable",
    "store",
    "num_workers",
)


@dataclass
class Teacher:
    """A frozen network with its own preprocessing."""

    name: str
    model: nn.Module
    views: Views
    view: str
    stated_accuracy: float | None = None  # what its file says about itself
    num_classes: int = 0
    artifact: str | None = None
    cached: CachedTeacher | None = None  # of its logits in training, where they are kept
    judged: Tensor | None = None  # its logits on the images by which it is judged, once they are known

    @property
    def parameters(self) -> int:
        return models.count_parameters(self.model)

    @cached_property
    def digest(self) -> str:
        """Of its weights: what else its logits depend on is its architecture and what it sees."""
        content = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            content.update(name.encode())
            content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return content.hexdigest()


def training_config(run: Config, index: int) -> Config:
    """The `baseline` run that trains teacher `index` of `run`; UserError if its file asks for what it may not."""
    teacher = run.teachers[index]
    where = f"teachers[{index}].train"
    assert teacher.train is not None
    path = find_file(teacher.train, where)
    values = read_yaml(path)
    allowed = {"training", "data", "name"}
    for section in values:
        if section not in allowed:
            raise UserError(f"{path}: {section}: a teacher's file may hold {', '.join(sorted(allowed))} only")
    for key in values.get("data") or {}:
        if key in INHERITED_DATA:
            raise UserError(f"{path}: data.{key}: comes from the run that asks for the teacher; remove it here")
    for key in ("mixed_precision", "compare_with_baseline"):
        if key in (values.get("training") or {}):
            raise UserError(f"{path}: training.{key}: is the run's, one precision a process; remove it here")
    inherited = Layer(
        f"{where} of the run",
        {
            "output_dir": run.output_dir,
            "name": values.get("name") or f"teacher-{teacher.model}",
            "data": {key: getattr(run.data, key) for key in INHERITED_DATA},
            "model": {
                "name": teacher.model,
                "img_size": teacher.img_size,
                "stem": teacher.stem,
                "normalization": teacher.normalization,
                "args": teacher.args,
            },
            "kd": {"type": kd_methods.LABEL_ONLY},
            "training": {"mixed_precision": run.training.mixed_precision},
            "cache": run.cache.model_dump(),
            "wandb": {**run.wandb.model_dump(), "name": None, "group": "teachers", "notes": None},
        },
    )
    return resolve([Layer(str(path), values), inherited], in_sweep=False).config


def input_sizes(run: Config) -> list[int]:
    """The side of each teacher's input in pixels; artifacts are downloaded to know it."""
    return [_input_size(teacher, f"teachers[{index}]", run) for index, teacher in enumerate(run.teachers)]


def _input_size(config: TeacherConfig, where: str, run: Config) -> int:
    source = config.weights or ""
    if config.model:
        return models.input_size(config.model, config.img_size, config.stem, f"{where}.model")
    if source.startswith("wandb:"):
        folder = artifacts.download(source.removeprefix("wandb:"), run.cache.folder / "artifacts", where)
        return models.export_size(export_in(folder))
    if known := _known(source):
        return int(known.preprocess.size)
    if source.startswith("hf-hub:"):
        return models.input_size(source, where=f"{where}.weights")
    folder = Path(source).expanduser()
    return models.export_size(export_in(folder)) if folder.is_dir() else 0  # what is missing `load` will report


def untrained(run: Config, index: int, data: Data) -> Teacher:
    """A stand-in with random weights for a teacher yet to be trained: right for timing, wrong for anything else."""
    own = student.build(training_config(run, index), data)
    own.model.eval().requires_grad_(False)
    views = _views(own.preprocess, run.teachers[index], data, run)
    return Teacher(f"{own.architecture} (not trained yet)", own.model, views, run.teachers[index].view)


def load(config: TeacherConfig, index: int, data: Data, run: Config, trained: Path | None = None) -> Teacher:
    """Build teacher `index` with its weights, strictly.  `trained` is the run folder of a teacher trained on demand.

    UserError if the weights are missing, damaged, for another architecture, class count or class order.
    """
    where = f"teachers[{index}]"
    source = config.weights
    artifact = None
    if source and source.startswith("wandb:"):
        artifact = source.removeprefix("wandb:")
        trained = artifacts.download(artifact, run.cache.folder / "artifacts", where)
    elif source and Path(source).expanduser().is_dir():
        trained = Path(source).expanduser()
    if trained is not None:
        teacher = _from_export(trained, config, where, data, run)
        teacher.artifact = artifacts.version_of(artifact) if artifact else None
    elif source == "pretrained" or (source and source.startswith("hf-hub:") and not _known(source)):
        name = config.model or source
        model = models.create_model(
            name if source == "pretrained" else source,
            num_classes=data.num_classes,
            img_size=config.img_size,
            stem=config.stem,
            pretrained=True,
            args=config.args,
            where=f"{where}.model",
        )
        teacher = Teacher(
            name,
            model,
            _views(models.preprocess_of(model, img_size=config.img_size), config, data, run),
            config.view,
        )
    else:
        assert source is not None
        teacher = _from_checkpoint(source, config, where, data, run)
    teacher.model.eval().requires_grad_(False)
    teacher.num_classes = data.num_classes
    return teacher


def _known(source: str) -> Any:
    return weights.KNOWN_CHECKPOINTS.get(source.removeprefix("hf-hub:"))


def export_in(folder: Path) -> Path:
    """The exported student in a run folder, or `folder` itself if it is an export."""
    checkpoints = folder / "checkpoints"
    for path in (folder / "student", checkpoints / "best" / "student", checkpoints / "latest" / "student", folder):
        if (path / "config.json").is_file():
            return path
    raise UserError(f"{folder}: holds no exported student (student/config.json) and is none itself")


def _from_export(folder: Path, config: TeacherConfig, where: str, data: Data, run: Config) -> Teacher:
    """The student that a run or somebody else exported."""
    try:
        export = export_in(folder)
        loaded = models.load_export(export)
    except UserError as error:
        raise UserError(f"{where}.weights: {error}") from None
    wanted = models.architecture(config.model, config.stem) if config.model else loaded.architecture
    if wanted != loaded.architecture:
        raise UserError(f"{where}.model: is {wanted!r}, but {export} holds a {loaded.architecture!r}")
    stated = read_json(export / "metrics.json").get("val/accuracy") if (export / "metrics.json").is_file() else None
    _check_classes(loaded, data, f"{where} {folder}")
    views = _views(loaded.preprocess, config, data, run)
    return Teacher(loaded.architecture, loaded.model, views, config.view, stated)


def _from_checkpoint(source: str, config: TeacherConfig, where: str, data: Data, run: Config) -> Teacher:
    """A plain state-dict file, local or one of the known checkpoints on the Hub."""
    known = _known(source)
    name = models.architecture(config.model or known.model, config.stem) if known or config.model else None
    if name is None:
        raise UserError(f"{where}.model: a checkpoint file does not say its architecture; name it")
    if known:
        path = download_from_hub(source.removeprefix("hf-hub:"), known.filename, f"{where}.weights")
    elif Path(source).expanduser().is_file():
        path = Path(source).expanduser()
    else:
        raise UserError(
            f"{where}.weights: no such file or folder: {source}; allowed: a run folder, an exported student, "
            "a checkpoint file, wandb:ENTITY/PROJECT/NAME:ALIAS, hf-hub:ORG/NAME, pretrained"
        )
    model = models.create_model(
        name, num_classes=data.num_classes, img_size=config.img_size, args=config.args, where=f"{where}.model"
    )
    weights.load_strict(model, weights.read_state_dict(path, f"{where}.weights"), f"{where} {name!r}", data.num_classes)
    preprocess = known.preprocess if known else models.preprocess_of(model, img_size=config.img_size)
    return Teacher(name, model, _views(preprocess, config, data, run), config.view)


def _views(preprocess: models.Preprocess, config: TeacherConfig, data: Data, run: Config) -> Views:
    if config.normalization == "data":
        preprocess = models.Preprocess(
            preprocess.size, preprocess.resize, preprocess.interpolation, data.mean, data.std
        )
    return Views(preprocess, data.image_size, crop_padding=run.data.crop_padding, flip=run.data.flip)


def _check_classes(loaded: models.LoadedModel, data: Data, where: str) -> None:
    if loaded.num_classes != data.num_classes:
        raise UserError(f"{where}: has {loaded.num_classes} classes, the data have {data.num_classes}")
    names = loaded.class_names
    if names and names != data.class_names and sorted(names) == sorted(data.class_names):
        raise UserError(
            f"{where}: knows the same classes in another order: {names[0]!r} comes first, "
            f"in the data it is {data.class_names[0]!r}"
        )


def download_from_hub(repository: str, filename: str, where: str) -> Path:
    """One file of a Hub repository, from the local cache if it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{where}: {repository}/{filename} is not in the local Hub cache and cannot be downloaded "
            f"({type(error).__name__}); download it on a machine with network and give the file as weights"
        ) from None


# ------------------------------------------------------------------------------------------- using teachers


class Panel:
    """K frozen teachers side by side."""

    def __init__(self, members: list[Teacher], predict: Predictor):
        self.members, self._predict = members, predict
        self._finite: Tensor | None = None
        for teacher in members:
            predict.prepare(teacher.model)

    def __len__(self) -> int:
        return len(self.members)

    @torch.no_grad()
    def __call__(self, rows: Tensor, images: Tensor, view: View) -> Tensor:
        """Logits float32 [K,B,C] of rows int64 [B], whose images are uint8 [B,H,W,3]; each teacher sees its own view.

        They are values that fp16 can hold, as the cache keeps them: so cached and computed ones are the same.
        """
        logits = []
        for teacher in self.members:
            compute = partial(self._compute, teacher, images, view.ids, shared=teacher.view == "shared")
            own = teacher.cached(rows, view.numbers, compute) if teacher.cached else compute()
            logits.append(own.to(images.device, non_blocking=True))
        rounded = torch.stack(logits).float()
        finite = rounded.isfinite().flatten(1).all(1)
        self._finite = finite if self._finite is None else self._finite & finite
        return rounded

    def _compute(
        self,
        teacher: Teacher,
        images: Tensor,
        view_ids: Tensor,
        positions: Tensor | None = None,
        *,
        shared: bool,
    ) -> Tensor:
        """fp16 logits [B,C] of images uint8 [B,H,W,3] (or those at `positions`) in their views, or the clean one."""
        if positions is not None:
            images, view_ids = images[positions.to(images.device)], view_ids[positions.to(view_ids.device)]
        channels_last = self._predict.config.training.channels_last
        if shared:
            view = teacher.views.train(images, view_ids, channels_last=channels_last)
        else:
            view = teacher.views.clean(images, channels_last=channels_last)
        with self._predict.accelerator.autocast():
            return teacher.model(view).half()

    def hit_rate(self) -> float:
        """The share of teachers' logits that were read instead of computed, since the last call."""
        rates = [teacher.cached.hit_rate() if teacher.cached else 0.0 for teacher in self.members]
        return sum(rates) / len(rates) if rates else 0.0

    def culprits(self) -> str:
        """Names the teachers that gave logits which are not finite, for a message; empty if none did."""
        finite = [True] * len(self) if self._finite is None else self._finite.tolist()
        return "; ".join(
            f"teachers[{index}] {teacher.name!r} gave logits that are not finite or too large for fp16"
            for index, teacher in enumerate(self.members)
            if not finite[index]
        )

    def logits(self, images: Images, verb: str) -> Tensor | None:
        """Clean-view logits float32 [K,n,C] of a split, None without teachers.  UserError if they are not finite."""
        everything = []
        for index, teacher in enumerate(self.members):
            label = f"{verb} teacher {index} ({teacher.name})"
            if self._predict.config.cache.mode == "off":
                own = round_to_fp16(self._predict(teacher.model, images, teacher.views, label))
            else:
                clean = self._open(teacher, images.split, views=1, shared=False)
                self._fill(teacher, clean, images, label)
                own = clean.store.read(images.split.rows)[0].to(images.labels.device).float()
            everything.append(own)
            if not bool(own.isfinite().all()):
                raise _not_finite(index, teacher)
        return torch.stack(everything) if everything else None

    # ------------------------------------------------------------------------------------------------- caching

    def open_caches(self, images: Images, notify: Callable[[str], None]) -> None:
        """Keep the teachers' logits for training `images` as `cache.mode` says, and compute those that can be now."""
        config = self._predict.config
        cache, data = config.cache, config.data
        if cache.mode == "off":
            return
        count = num_views(data.crop_padding, data.flip)
        shared = [teacher for teacher in self.members if teacher.view == "shared"]
        mode, rows = cache.mode, len(images.split.labels)
        if mode == "auto" and shared:
            gigabytes = {
                views: sum(Store.size(views, rows, teacher.num_classes) for teacher in shared) / GIGABYTE
                for views in (count, cache.views)
            }
            room = min(cache.max_gb, free_gigabytes(cache.folder))
            mode = "lazy" if gigabytes[count] <= room else "clean"
            if mode == "clean":
                notify(
                    f"teachers run in every step: all {count} views of the images would take {gigabytes[count]:.1f} "
                    f"GB, there is room for {room:.4g} (cache.max_gb is {cache.max_gb:g}); cache.mode=fixed would take "
                    f"{gigabytes[cache.views]:.1f} GB"
                )
        for index, teacher in enumerate(self.members):
            label = f"caching teacher {index} ({teacher.name})"
            if teacher.view == "clean":
                teacher.cached = self._open(teacher, images.split, views=1, shared=False)
            elif mode in ("lazy", "fixed"):
                views = count if mode == "lazy" else cache.views
                teacher.cached = self._open(teacher, images.split, views=views, shared=True)
            if teacher.cached and (teacher.view == "clean" or mode == "fixed"):
                self._fill(teacher, teacher.cached, images, label)
                teacher.cached.keep_on(self._predict.accelerator.device)

    def _open(self, teacher: Teacher, split: Split, *, views: int, shared: bool) -> CachedTeacher:
        """The store of a teacher's logits for a split: of the clean view, or of `views` ones it shares with others."""
        config, accelerator = self._predict.config, self._predict.accelerator
        training, data = config.training, config.data
        seen: Any = "clean"
        if shared:
            fixed = views if config.cache.mode == "fixed" else None
            seen = {"crop_padding": data.crop_padding, "flip": data.flip, "fixed": fixed}
        parts = {
            "weights": teacher.digest,
            "architecture": teacher.name,
            "preprocess": teacher.views.recipe,
            "images": split.fingerprint,
            "view": seen,
            # what rounding depends on
            "precision": training.mixed_precision,
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
        )
        return CachedTeacher(store, per_view=shared)

    @torch.no_grad()
    def _fill(self, teacher: Teacher, cached: CachedTeacher, images: Images, label: str) -> None:
        """Compute what a store lacks for a split, each process its part; all processes call this together.

        Of several runs that want the same store one fills it while the others wait.
        """
        accelerator, config = self._predict.accelerator, self._predict.config
        store, rows = cached.store, images.split.rows
        slots = (torch.arange(store.views)[:, None] * store.rows + rows).flatten()
        batch = config.evaluation.batch_size or config.data.batch_size

        def compute(lacking: Tensor) -> None:
            hidden = not accelerator.is_main_process
            parts = lacking.split(batch) if len(lacking) else ()
            for part in tqdm(parts, desc=label, leave=False, disable=hidden or None):
                if len(part) == 1:  # a network may round a single image's logits otherwise than a batch's
                    part = torch.cat([part, slots[slots != part][:1]])
                pixels, _ = images.store.gather(part % store.rows)
                ids = fixed_view_ids(
                    part % store.rows,
                    part // store.rows,
                    crop_padding=config.data.crop_padding,
                    flip=config.data.flip,
                )
                logits = self._compute(teacher, pixels, ids.to(pixels.device), shared=cached.per_view).cpu()
                if not bool(logits.isfinite().all()):
                    raise _not_finite(self.members.index(teacher), teacher)
                cached.keep(part, logits)

        with ExitStack() as cleanup:
            if accelerator.is_main_process:  # not one process a machine: with a common folder they would wait in a ring
                cleanup.callback(store.lock(tqdm.write).release)
            accelerator.wait_for_everyone()
            lacking = store.missing(slots)
            accelerator.wait_for_everyone()  # none fills before all know what is missing
            compute(lacking[accelerator.process_index :: accelerator.num_processes])
            accelerator.wait_for_everyone()
            if accelerator.is_local_main_process:
                compute(store.missing(slots))  # the others' parts, where machines share no folder
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
        """Metrics of each teacher from logits [K,n,C], then those of their ensemble.

        UserError if a teacher is near chance.
        """
        figures = [metrics.classification(own, labels) for own in logits]
        for index, (teacher, row) in enumerate(zip(self.members, figures, strict=True)):
            if near_chance(row["accuracy"], labels):
                raise UserError(
                    f"teachers[{index}] {teacher.name!r}: accuracy {row['accuracy']:.2%} on {len(labels)} images is "
                    f"near chance. Usual causes: weights of another data set, classes in "
                    "another order, another normalisation than in its training (teachers[].normalization), another "
                    "input size (teachers[].img_size)"
                )
        return [*figures, metrics.classification(metrics.ensemble_logits(logits), labels)]

    def remarks(self, figures: list[dict[str, float]], images: str) -> list[str]:
        """One line a teacher and one for the ensemble, and a warning where a figure is too good to be true.

        `images` says what they were measured on: validation or training images.
        """
        lines = []
        for index, (teacher, row) in enumerate(zip(self.members, figures[:-1], strict=True)):
            lines.append(
                f"teacher {index} {teacher.name}: accuracy {row['accuracy']:.2%} on {images}, {teacher.view} view"
            )
            if teacher.stated_accuracy is not None and row["accuracy"] > teacher.stated_accuracy + 0.05:
                lines.append(
                    f"teacher {index} is far better here than the {teacher.stated_accuracy:.2%} that its file states: "
                    "it has probably been trained on these validation images"
                )
        return [*lines, f"teachers' ensemble: accuracy {figures[-1]['accuracy']:.2%} on {images}"]


def rows(figures: list[dict[str, float]]) -> dict[str, float]:
    """teacher/{i}/val_accuracy and teacher/ensemble/val_accuracy, from what `Panel.measure` gave."""
    names = [*range(len(figures) - 1), "ensemble"] if figures else []
    return {f"teacher/{name}/val_accuracy": row["accuracy"] for name, row in zip(names, figures, strict=True)}


def _not_finite(index: int, teacher: Teacher) -> UserError:
    return UserError(
        f"teachers[{index}] {teacher.name!r}: gives logits that fp16 cannot hold or that are not finite; its weights "
        "may be damaged"
    )


def round_to_fp16(logits: Tensor) -> Tensor:
    """float32 values that fp16 can hold; what is too large becomes infinite and is reported by the caller."""
    return logits.half().float()


def near_chance(accuracy: float, labels: Tensor) -> bool:
    """Whether an accuracy on `labels` could be had by always naming the most frequent class.

    Up to 3 standard errors above that, and at least 2 points or half of it, whichever is less.
    """
    chance = float(labels.bincount().max()) / len(labels)
    return accuracy <= chance + max(3 * math.sqrt(chance * (1 - chance) / len(labels)), min(0.02, chance / 2))
