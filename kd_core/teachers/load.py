"""Teachers: weights or logits loaded, trained on demand, and whether they may have seen the validation images."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

import kd_methods
from kd_core.config import (
    PLACE_OF_DATA,
    Config,
    DataConfig,
    Layer,
    TeacherConfig,
    find_file,
    own_code,
    read_yaml,
    resolve,
)
from kd_core.data.dataset import Data, validation_size
from kd_core.data.preprocess import NORMALIZATIONS
from kd_core.data.recipes import crops_of
from kd_core.data.views import Views
from kd_core.errors import UserError
from kd_core.files import json_sha256, read_json, read_object, sha256_of, write_json
from kd_core.models import build as models
from kd_core.models import network as networks
from kd_core.models import weights
from kd_core.models.exported import check_classes, export_in
from kd_core.run import artifacts
from kd_core.run.folder import find_run
from kd_core.teachers.class_order import outputs_in_order
from kd_core.teachers.logits_file import LogitsFile, no_such_file

ON_DEMAND = "teachers"  # W&B group of teachers trained on demand
# The only settings that a teacher trained on demand inherits from the run: the identity of the data and of the split,
# so that it never sees the student's validation images.
INHERITED_DATA = (
    *PLACE_OF_DATA,
    "train_split",
    "val_split",
    "test_split",
    "val_size",
    "test_size",
    "split_seed",
    "label_noise",
    "train_size",
    "store_size",
    "allow_unreadable",
    "store",
    "num_workers",
)
# Those of these keys that choose the validation images among the same images, beside their number.
SPLIT_KEYS = ("test_size", "split_seed")
# Whether a network has been trained on the validation images, and the words for it.
Exposure = Literal["no", "possibly", "yes"]
EXPOSED = {
    "possibly": "may have been trained on these validation images",
    "yes": "has been trained on these validation images",
}


@dataclass(frozen=True)
class Facts:
    """What is known of a network without building it: enough to use its cached logits."""

    architecture: str
    num_classes: int
    class_names: list[str] | None
    preprocess: models.Preprocess
    parameters: int
    notes: tuple[str, ...] = ()  # which of several weights in its file are used


@dataclass
class Teacher:
    """A frozen network with its own preprocessing, built when it is first used, or a file of its logits.

    Args:
        digest: of everything that its logits depend on, besides its views.
        parameters: their number; None if unknown.
        build: returns the network; None for a file of logits.
    """

    name: str
    num_classes: int
    parameters: int | None
    digest: str
    view: str
    views: Views | None
    build: Callable[[], nn.Module] | None
    file: LogitsFile | None = None
    stated_accuracy: float | None = None  # by its own file
    artifact: str | None = None
    index: int = 0  # in the list `teachers` of the settings
    preprocess: models.Preprocess | None = None  # of its weights, before the setting `normalization`
    has_own_size: bool = False  # its weights say the size of its input, and no setting changes that
    validation_logits: Tensor | None = None  # [n,C], of the images that it is measured on, once computed
    saw_validation: Exposure | None = "possibly"  # None without a validation split
    notes: list[str] = field(default_factory=list)  # printed when training starts, one line each

    @property
    def who(self) -> str:
        """How messages name it."""
        return f"teachers[{self.index}] {self.name!r}"

    @cached_property
    def model(self) -> nn.Module:
        assert self.build is not None, self.name
        # Whether it is built depends on the cache, so its initialization must not advance the generator from which the
        # student's dropout draws.
        with torch.random.fork_rng(devices=[]):
            return self.build().eval().requires_grad_(False)


def training_config(run: Config, index: int) -> Config:
    """The `baseline` run that trains teacher `index` of `run`; UserError if its file holds keys that it must not."""
    teacher = run.teachers[index]
    where = f"teachers[{index}].train"
    assert teacher.train is not None
    path = find_file(teacher.train, where)
    values = read_yaml(path)
    allowed = {"training", "data", "name"}
    for section in values:
        if section not in allowed:
            raise UserError(f"{path}: {section}: a teacher's file may hold {', '.join(sorted(allowed))} only")
    for section in ("data", "training"):
        if not isinstance(values.get(section) or {}, dict):
            raise UserError(f"{path}: {section}: is {values[section]!r}, expected a section: give keys below it")
    for key in values.get("data") or {}:
        if key in INHERITED_DATA:
            raise UserError(f"{path}: data.{key}: comes from the run that asks for the teacher; remove it here")
    if "unlabeled" in (values.get("data") or {}):
        raise UserError(f"{path}: data.unlabeled: a teacher learns from labels alone; remove it here")
    for key in ("mixed_precision", "compare_with_baseline"):
        if key in (values.get("training") or {}):
            raise UserError(f"{path}: training.{key}: is the run's; remove it here")
    inherited = Layer(
        f"{where} of the run",
        {
            "output_dir": run.output_dir,
            "name": values.get("name") or f"teacher-{teacher.model}",
            "data": {key: value for key, value in run.data.model_dump().items() if key in INHERITED_DATA},
            "model": {
                "name": teacher.model,
                "img_size": teacher.img_size,
                "stem": teacher.stem,
                "normalization": teacher.normalization,
                "args": teacher.args,
            },
            **own_code_of(run, teacher.model),
            "kd": {"type": kd_methods.LABEL_ONLY},
            "training": {"mixed_precision": run.training.mixed_precision},
            "cache": run.cache.model_dump(),
            "wandb": {**run.wandb.model_dump(), "name": None, "group": ON_DEMAND, "notes": None},
        },
    )
    return resolve([Layer(str(path), values), inherited], in_sweep=False).config


def own_code_of(run: Config, model: str | None) -> dict[str, Any]:
    """Setting `import` of a teacher trained on demand: the files that define its network or its data source."""
    found = (own_code.provider(own_code.NETWORK, model or ""), own_code.provider(own_code.SOURCE, run.data.source))
    files = dict.fromkeys(str(file.path) for file in found if file)
    return {"import": list(files)} if files else {}


def find_teacher(run: Config, index: int, data: Data) -> Path | None:
    """The finished run folder of the on-demand teacher `index`, if there is one."""
    found = find_run(training_config(run, index), data.fingerprint, finished=True)
    return found.path if found else None


def input_sizes(run: Config) -> list[int]:
    """The side of each teacher's input in pixels; artifacts are downloaded for it.  UserError lists missing files."""
    entries = [(teacher, f"teachers[{index}]") for index, teacher in enumerate(run.teachers)]
    if problems := [problem for entry in entries if (problem := _missing(*entry))]:
        raise UserError("\n".join(problems))
    return [_input_size(teacher, where, run) for teacher, where in entries]


def _input_size(config: TeacherConfig, where: str, run: Config) -> int:
    if config.logits:
        return 0  # it has no input
    source = config.weights or ""
    folder = Path(source).expanduser() if source else None
    if source.startswith("wandb:"):
        folder = artifacts.download(source.removeprefix("wandb:"), run.cache.folder / "artifacts", where)
    if folder and source != "pretrained" and folder.is_dir():  # it says its size, whatever the entry says beside it
        return models.export_size(_export_of(folder, where))
    if config.model:
        return models.input_size(config.model, config.img_size, config.stem, f"{where}.model")
    if known := _known(source):
        return int(known.preprocess.size)
    if source.startswith("hf-hub:"):
        return models.input_size(source, where=f"{where}.weights")
    return 0


def _export_of(folder: Path, where: str) -> Path:
    """The export in the folder that `weights` names; UserError if there is none."""
    try:
        return export_in(folder)
    except UserError as error:
        raise UserError(f"{where}.weights: {error}") from None


def _missing(config: TeacherConfig, where: str) -> str | None:
    """What is wrong if the entry names a local file or folder that is not there."""
    if config.logits:
        return no_such_file(Path(config.logits).expanduser(), f"{where}.logits")
    source = config.weights or "pretrained"
    elsewhere = source == "pretrained" or source.startswith(("wandb:", "hf-hub:")) or _known(source)
    path = Path(source).expanduser()
    if elsewhere or path.is_file() or path.is_dir():  # nothing else that a path may name, such as a pipe
        return None
    return (
        f"{where}.weights: no such file or folder: {source}; allowed: a run folder, an exported student, "
        "a checkpoint file, wandb:ENTITY/PROJECT/NAME:ALIAS, hf-hub:ORG/NAME, pretrained"
    )


def untrained(run: Config, index: int, data: Data) -> Teacher:
    """A stand-in with random weights for a teacher not yet trained; only good for timing."""
    own = networks.build(training_config(run, index), data)
    config = run.teachers[index]
    return Teacher(
        name=f"{own.architecture} (not trained yet)",
        num_classes=data.num_classes,
        parameters=own.parameters,
        digest="",
        view=config.view,
        views=views_of(own.preprocess, config.normalization, data, run),
        build=lambda: own.model,
        index=index,
        saw_validation="no" if data.val else None,
    )


class Reordered(nn.Module):
    """A network with its outputs [B,C] in another order: class c is its output `order[c]`."""

    order: Tensor

    def __init__(self, network: nn.Module, order: list[int]):
        super().__init__()
        self.network = network
        self.register_buffer("order", torch.tensor(order))

    def forward(self, images: Tensor) -> Tensor:
        return self.in_order(self.network(images))

    def in_order(self, logits: Tensor) -> Tensor:
        """The network's own outputs [B,C] in the order of the classes."""
        return logits.index_select(1, self.order)


def load(config: TeacherConfig, index: int, data: Data, run: Config, trained: Path | None = None) -> Teacher:
    """Teacher `index`, with strictly checked weights.

    A network that any run on this machine has built before is built again only when it runs, so not if all its logits
    are cached.

    Args:
        trained: the run folder of a teacher trained on demand.

    Raises:
        UserError: weights that are missing, damaged, or for another architecture, class count or class order.
    """
    where = f"teachers[{index}]"
    if problem := _missing(config, where):
        raise UserError(problem)
    if isinstance(config.class_order, list) and len(config.class_order) != data.num_classes:
        raise UserError(
            f"{where}.class_order: has {len(config.class_order)} numbers, the data have {data.num_classes} classes"
        )
    teacher = _from_origin(config, where, data, run, trained)
    teacher.index = index
    if config.trained_on is not None:
        cut = data.val is not None and data.val.fingerprint == data.train.fingerprint
        teacher.saw_validation = "yes" if config.trained_on == "all" and cut else "no"
    if data.val is None:
        teacher.saw_validation = None
    if config.model and (note := models.renamed_note(config.model, f"{where}.model")):
        teacher.notes.append(note)
    return teacher


def exposure(members: list[Teacher]) -> Exposure | None:
    """Whether any of them has been trained on the validation images; None without such images."""
    return worst_of([teacher.saw_validation for teacher in members])


def worst_of(words: list[Exposure | None]) -> Exposure | None:
    order: tuple[Exposure, ...] = ("no", "possibly", "yes")
    return max((word for word in words if word), key=order.index, default=None)


def recorded_data(export: Path) -> DataConfig:
    """The settings of the data that an export was trained on; UserError if they are of another version or project."""
    record = export / "config.yaml"
    settings = {"data": read_yaml(record).get("data") or {}}
    return resolve([Layer(str(record), settings)], in_sweep=False).config.data


def _exposure_of_export(export: Path, data: Data, run: Config) -> Exposure:
    """Whether an export has been trained on the run's validation images, by its settings and data fingerprint."""
    if data.val is None or not (export / "config.yaml").is_file():
        return "possibly"
    try:
        extra = read_object(export / "config.json").get("extra")
        if not isinstance(extra, dict) or extra.get("data_fingerprint") != data.fingerprint:
            return "possibly"
        if data.val.fingerprint != data.train.fingerprint:
            return "no"  # a separate split, covered by the fingerprint: it was that run's validation split, too
        own = recorded_data(export)
        same = all(getattr(own, key) == getattr(run.data, key) for key in SPLIT_KEYS)
        if same and validation_size(own, data) == len(data.val):
            return "no"
        return "possibly" if own.train_size else "yes"
    except UserError:  # settings of another version, or of another project
        return "possibly"


def _from_origin(config: TeacherConfig, where: str, data: Data, run: Config, trained: Path | None) -> Teacher:
    source = config.weights
    if config.logits:
        return _from_logits(config.logits, where, data)
    if source and source.startswith("wandb:"):
        artifact = source.removeprefix("wandb:")
        folder = artifacts.download(artifact, run.cache.folder / "artifacts", where)
        teacher = _from_export(folder, config, where, data, run)
        teacher.artifact = artifacts.version_of(artifact)
        return teacher
    if trained is None and source and source != "pretrained" and Path(source).expanduser().is_dir():
        trained = Path(source).expanduser()
    if trained is not None:
        return _from_export(trained, config, where, data, run)
    assert source is not None
    if source == "pretrained" or (source.startswith("hf-hub:") and not _known(source)):
        return _from_timm(source, config, where, data, run)
    return _from_checkpoint(source, config, where, data, run)


def _known(source: str) -> Any:
    return weights.KNOWN_CHECKPOINTS.get(source.removeprefix("hf-hub:"))


def _from_logits(name: str, where: str, data: Data) -> Teacher:
    """A file of logits of any model."""
    file = LogitsFile(Path(name).expanduser(), f"{where}.logits", data.num_classes)
    file.require(data.train)
    if data.val is not None:
        file.require(data.val)
    view = "shared" if file.views(data.train) else "clean"
    return Teacher(file.path.name, data.num_classes, None, file.path.name, view, views=None, build=None, file=file)


def _from_export(folder: Path, config: TeacherConfig, where: str, data: Data, run: Config) -> Teacher:
    """An exported student."""

    def build() -> models.LoadedModel:
        try:
            return models.load_export(export)
        except UserError as error:
            raise UserError(f"{where}.weights: {error}") from None

    export = _export_of(folder, where)
    files = {name: export / name for name in ("config.json", "model.safetensors")}
    origin = {name: sha256_of(path) for name, path in files.items() if path.is_file()}
    if own_code.files():
        origin |= _code_of(str(read_object(files["config.json"]).get("architecture")))
    facts, digest, network = _facts_of(origin, build, run)
    _require_what_it_holds(export, facts, config, where)
    check_classes(facts, data, f"{where} {folder}", outputs_in_order(config.class_order, data.class_names))
    teacher = _teacher(facts, digest, network, config, data, run)
    teacher.has_own_size = True
    teacher.saw_validation = _exposure_of_export(export, data, run)
    if (export / "metrics.json").is_file():
        stated = read_object(export / "metrics.json").get("val/accuracy")
        teacher.stated_accuracy = stated if isinstance(stated, float) else None
    return teacher


def _require_what_it_holds(export: Path, facts: Facts, config: TeacherConfig, where: str) -> None:
    """UserError if an entry describes another network than that of its export, which is the one that runs."""
    if config.model or config.stem != "default":
        wanted = models.architecture(config.model or facts.architecture, config.stem, f"{where}.model")
        if wanted != facts.architecture:
            key, given = ("model", wanted) if config.model else ("stem", config.stem)
            raise UserError(f"{where}.{key}: is {given!r}, but {export} holds a {facts.architecture!r}")
    size = facts.preprocess.size
    if config.img_size not in (None, size):
        raise UserError(
            f"{where}.img_size: is {config.img_size}, but {export} holds a network for {size} pixels; leave it out"
        )
    args = models.export_args(export) if config.args else {}
    if other := {key: value for key, value in config.args.items() if key not in args or args[key] != value}:
        raise UserError(f"{where}.args: is {other}, but {export} holds a network with {args or 'none'}; leave it out")


def _from_checkpoint(source: str, config: TeacherConfig, where: str, data: Data, run: Config) -> Teacher:
    """A state-dict file, local or one of the known checkpoints on the Hub."""
    known = _known(source)
    name = models.architecture(config.model or known.model, config.stem) if known or config.model else None
    if name is None:
        raise UserError(f"{where}.model: a checkpoint file does not say its architecture; name it")
    if known:
        path = download_from_hub(source.removeprefix("hf-hub:"), known.filename, f"{where}.weights")
    else:
        path = Path(source).expanduser()

    remarks: list[str] = []

    def build() -> models.LoadedModel:
        model = models.create_model(
            name, num_classes=data.num_classes, img_size=config.img_size, args=config.args, where=f"{where}.model"
        )
        remarks.clear()
        found = weights.read_state_dict(path, f"{where}.weights", remarks.append)
        weights.load_strict(model, found, f"{where} {name!r}", data.num_classes)
        preprocess = known.preprocess if known else models.preprocess_of(model, img_size=config.img_size)
        return models.LoadedModel(model, name, data.num_classes, None, preprocess, {})

    origin = {
        "weights": sha256_of(path),
        "reading": weights.READING,
        "model": name,
        "num_classes": data.num_classes,
        "img_size": config.img_size,
        "args": config.args,
        "known": source if known else None,
        **_code_of(name),
    }
    facts, digest, network = _facts_of(origin, build, run, remarks)
    teacher = _teacher(facts, digest, network, config, data, run)
    teacher.notes += [f"{where}.weights: {path}: {note}" for note in facts.notes]
    return teacher


def _from_timm(source: str, config: TeacherConfig, where: str, data: Data, run: Config) -> Teacher:
    """timm's own weights or a timm model of the Hub.  Only timm knows its file, so the network is always built."""
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
    args = [json.dumps(config.args, sort_keys=True)] if config.args else []  # such as another pooling
    content = hashlib.sha256("".join([name, *_code_of(name).values(), *args]).encode())
    for key, tensor in model.state_dict().items():
        content.update(key.encode())
        content.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    preprocess = models.preprocess_of(model, img_size=config.img_size)
    cfg: Any = model.pretrained_cfg
    names = cfg.get("label_names")  # of a model of the Hub; as a mapping, it has gaps
    names = names if isinstance(names, list) and len(names) == data.num_classes else None
    facts = Facts(name, data.num_classes, names, preprocess, models.count_parameters(model))
    check_classes(facts, data, f"{where} {source}", outputs_in_order(config.class_order, data.class_names))
    return _teacher(facts, content.hexdigest(), lambda: model, config, data, run)


def _code_of(name: str) -> dict[str, str]:
    """The digest of the user's file that registers a network, if one does: its logits depend on it."""
    file = own_code.provider(own_code.NETWORK, name)
    return {"code": file.digest} if file else {}


def _facts_of(
    origin: dict[str, Any], build: Callable[[], models.LoadedModel], run: Config, remarks: list[str] | None = None
) -> tuple[Facts, str, Callable[[], nn.Module]]:
    """Facts about the network that `origin` identifies, their digest, and a function that returns the network.

    The facts are read from the cache if the network has been built before; otherwise it is built now and they are
    cached.  `remarks` are filled by `build`.
    """
    digest = json_sha256(origin, sort_keys=True)
    note = run.cache.folder / "teachers" / f"{digest}.json"
    if run.cache.mode != "off" and note.is_file():
        try:
            return TypeAdapter(Facts).validate_python(read_json(note)), digest, lambda: build().model
        except (ValidationError, UserError):
            pass  # damaged: written again below
    loaded = build()
    parameters = models.count_parameters(loaded.model)
    facts = Facts(
        loaded.architecture,
        loaded.num_classes,
        loaded.class_names,
        loaded.preprocess,
        parameters,
        tuple(remarks or ()),
    )
    if run.cache.mode != "off":
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, asdict(facts))
    return facts, digest, lambda: loaded.model


def _teacher(
    facts: Facts, digest: str, build: Callable[[], nn.Module], config: TeacherConfig, data: Data, run: Config
) -> Teacher:
    views = views_of(facts.preprocess, config.normalization, data, run)
    if config.class_order is not None:
        order, plain = outputs_in_order(config.class_order, data.class_names), build
        digest = json_sha256([digest, order])

        def build() -> nn.Module:
            return Reordered(plain(), order)

    teacher = Teacher(facts.architecture, data.num_classes, facts.parameters, digest, config.view, views, build)
    teacher.preprocess = facts.preprocess
    return teacher


def views_of(preprocess: models.Preprocess, normalization: str, data: Data, run: Config) -> Views:
    """The views of a network with this preprocessing under a setting `normalization`."""
    if normalization != "auto":
        mean, std = (data.mean, data.std) if normalization == "data" else NORMALIZATIONS[normalization]
        preprocess = replace(preprocess, mean=mean, std=std)
    return Views(preprocess, data.image_size, crops_of(run))


def download_from_hub(repository: str, filename: str, where: str) -> Path:
    """One file of a Hub repository, from the local cache if it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(repository, filename))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{where}: {repository}/{filename} is not in the local Hub cache and cannot be downloaded "
            f"({type(error).__name__}); download it on a machine with network and give the file as weights"
        ) from None
    stated = path.resolve().name  # the Hub's cache names large files by their SHA-256, but compares only sizes
    if re.fullmatch("[0-9a-f]{64}", stated) and sha256_of(path) != stated:
        raise UserError(f"{where}: {path}: damaged, its SHA-256 is not the Hub's, {stated}; delete it and try again")
    return path
