"""A trained student: where it comes from, its settings and data, and the networks that it is measured beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import kd_methods
from kd_core import config as configuration
from kd_core.config import Config, Layer, TeacherConfig, own_code
from kd_core.data.dataset import Data, Split, load_data
from kd_core.errors import UserError, first_line
from kd_core.files import local_path, read_object, sha256_of
from kd_core.loop.ranks import is_first_process
from kd_core.models import build as models
from kd_core.models.exported import check_classes, export_in
from kd_core.teachers.load import EXPOSED, Teacher, find_teacher, load, recorded_data

# Settings that decide which images of a source are for training.
SPLITTING = ("train_split", "val_split", "test_split", "val_size", "test_size", "train_size", "split_seed")


@dataclass(frozen=True)
class CommandSettings:
    """The settings that a command line gives.

    files: of --config FILE, as they were typed; later ones win.
    overrides: of --section.key=VALUE.
    own_code: of --import FILE.py.
    """

    files: list[str]
    overrides: Layer
    own_code: Layer

    def of_artifacts(self) -> Config:
        """The settings that say where artifacts are looked for and kept: `wandb` and `cache`."""
        layers = [*configuration.read_layers(self.files), self.overrides]
        wanted = ("wandb", "cache")
        return configuration.resolve(
            [Layer(layer.origin, {key: layer.values[key] for key in wanted if key in layer.values}) for layer in layers]
        ).config


@dataclass(frozen=True)
class TrainedStudent:
    """A student that was read from an export.

    folder: a run folder or an exported student, as the command names it or as an artifact was downloaded.
    artifact: ENTITY/PROJECT/NAME:ALIAS, if it came from W&B.
    export: the folder that holds config.json and model.safetensors.
    loaded: the network.
    run: the run folder that `folder` is or lies in, if any.
    """

    folder: Path
    artifact: str | None
    export: Path
    loaded: models.LoadedModel
    run: Path | None

    @property
    def artifact_name(self) -> str | None:
        """NAME of the artifact."""
        return self.artifact.rpartition("/")[2].partition(":")[0] if self.artifact else None

    def config(self, given: CommandSettings) -> Config:
        """The settings that the student was trained with, or those of --config, with the command line's changes.

        UserError if neither is there, or if they are not valid.
        """
        own = next((path for path in (self.folder, self.run) if path and (path / "config.yaml").is_file()), None)
        if given.files:
            layers = configuration.read_layers(given.files)
        elif own:
            layers = [configuration.read_record(own / "config.yaml")]
        else:
            raise UserError(
                f"--config: needed here, {self.folder} does not say which data its student was trained on"
            )
        if self.artifact and self.artifact.count("/") == 2:  # log to the artifact's project
            entity, project, _ = self.artifact.split("/")
            layers.append(Layer("the artifact's name", {"wandb": {"entity": entity, "project": project}}))
        if not (self.run or given.files):  # a record from elsewhere does not decide where things are written here
            layers.append(Layer("defaults", {"output_dir": "runs", "cache": {"dir": None}}))
        return configuration.resolve([*layers, given.overrides, given.own_code]).config

    def data(self, config: Config) -> Data:
        """The data of `config`, with images stored at the size that the student was trained on, and labeled alone."""
        if self.loaded.image_size and config.data.store_size is None:
            size = Layer("the student's config.json", {"data": {"store_size": self.loaded.image_size}})
            config = configuration.resolve([Layer("its run", config.model_dump(mode="json")), size]).config
        labeled = config.data.model_copy(update={"unlabeled": None})
        return load_data(labeled, model_sizes=[self.loaded.preprocess.size], cache_dir=config.cache.folder)

    def other_data(self, data: Data) -> str | None:
        """Words for data that are not those that it was trained on; None if they are, or if its export does not say."""
        there = self.loaded.data_fingerprint
        if there in (None, data.fingerprint):
            return None
        return (
            "the data are not those that the student was trained on "
            f"(fingerprint {str(there)[:12]} there, {data.fingerprint[:12]} here; earlier versions counted class names "
            "in)"
        )

    def other_cuts(self, config: Config) -> dict[str, Any]:
        """{key of `data`: its value in training} of what cuts splits and is another in `config`; {} if unknown."""
        if not (self.export / "config.yaml").is_file():
            return {}
        try:
            own = recorded_data(self.export)
        except UserError:  # settings of another version, or of another project, which do not tell
            return {}
        return {key: getattr(own, key) for key in SPLITTING if getattr(own, key) != getattr(config.data, key)}

    def require_unseen(self, split: Split, data: Data, config: Config) -> None:
        """UserError if it was trained on images of `split`, which other settings have cut from its training images."""
        changed = self.other_cuts(config) if split.fingerprint == data.train.fingerprint else {}
        if not changed:
            return
        there = self.data(config.model_copy(update={"data": config.data.model_copy(update=changed)})).train
        seen = len(np.intersect1d(there.rows, split.rows)) if there.fingerprint == split.fingerprint else 0
        if seen:
            raise UserError(
                f"the student was trained on {seen:,} of the {len(split):,} {split.name} images that these settings "
                f"give; in its training {cuts_in_words(changed)}"
            )


def cuts_in_words(data: dict[str, Any]) -> str:
    """Settings of `data` in words."""
    return ", ".join(f"data.{key}={value}" for key, value in data.items())


def open_student(folder: Path, artifact: str | None) -> TrainedStudent:
    """The student in `folder`, a run folder or an export; `artifact` is its name at W&B if it was downloaded.

    UserError if there is none, or if it cannot be loaded.
    """
    run = run_folder_of(folder)
    if run:
        _note_other_code(run)
    export = export_in(folder)
    return TrainedStudent(folder, artifact, export, models.load_export(export), run)


def run_folder_of(path: Path) -> Path | None:
    """The run folder that `path` is or lies in, if any."""
    return next((p for p in (path, *path.resolve().parents[:3]) if (p / "summary.json").is_file()), None)


def _note_other_code(run: Path) -> None:
    """Print a note for each file of --import whose content differs from the run's copy of the same name."""
    named = {file.path.name: file.digest for file in own_code.files()}
    for file in sorted((run / configuration.IMPORTS).glob("*.py")):
        if file.name in named and sha256_of(file) not in named.values() and is_first_process():
            print(f"note: --import {file.name} is not what the run was trained with, of which {file} is a copy")


# ---------------------------------------------------------------------------------------------- measured beside it


def find_teachers(
    student: TrainedStudent,
    config: Config,
    data: Data,
    given: CommandSettings,
    *,
    validation: bool,
    notify: Callable[[str], None],
) -> list[Teacher]:
    """The run's teachers; none, with a message that says why, if one of them cannot be found.

    `validation`: they will be measured on validation images, so `notify` which of them may have been trained on these.
    """
    members = []
    try:
        for index, teacher in enumerate(config.teachers):
            if not (given.files or student.run):
                require_at_hand(teacher, index, student.artifact)
            trained = find_teacher(config, index, data) if teacher.train else None
            if teacher.train and not trained:
                raise UserError(f"teachers[{index}]: no run in {config.output_dir} has trained it on these data")
            members.append(load(teacher, index, data, config, trained))
            for note in members[-1].notes:
                notify(note)
            if validation and members[-1].saw_validation in EXPOSED:
                notify(f"teacher {index} ({members[-1].name}) {EXPOSED[members[-1].saw_validation]}")
    except UserError as error:
        notify(f"teachers are not measured: {first_line(error)}")
        return []
    return members


def require_at_hand(teacher: TeacherConfig, index: int, artifact: str | None) -> None:
    """UserError for a teacher that would be downloaded only because the settings of a student from elsewhere name it.

    Local files are read as data, and artifacts of a project that the user has named may be downloaded.
    """
    source = teacher.weights or ""
    if (teacher.model or "").startswith("hf-hub:"):  # its description would be downloaded, wherever its weights are
        source = str(teacher.model)
    project, named = (name.rpartition("/")[0] for name in (artifact or "", source.partition("wandb:")[2]))
    if not (source == "pretrained" or source.startswith(("hf-hub:", "wandb:"))) or (artifact and named == project):
        return
    raise UserError(
        f"teachers[{index}]: {source} would be fetched, and the student's own settings alone name it; "
        "--config FILE with these teachers uses it"
    )


def find_baseline(student: TrainedStudent, config: Config, data: Data, named: str | None) -> models.LoadedModel | None:
    """The same student trained without teachers: of --baseline (`named`), or the one that its run has trained.

    UserError if it is another network, or has been trained with teachers, or on other data or images of them.
    """
    path = None
    if named:
        path = local_path(named, "--baseline")
        if not path.is_dir():
            raise UserError(f"--baseline: no such folder: {path}; a run folder is needed")
    elif student.run:
        summary = student.run / "summary.json"
        if isinstance(stated := read_object(summary).get("baseline_run"), str):
            path = local_path(stated, f"{summary}: baseline_run")
    if path is None or not path.is_dir():
        return None
    export = export_in(path)
    found, loaded = models.load_export(export), student.loaded
    check_classes(found, data, f"--baseline: {path}")
    if found.architecture != loaded.architecture:
        raise UserError(f"--baseline: {path}: holds a {found.architecture!r}, the student is a {loaded.architecture!r}")
    if (there := found.data_fingerprint) != (here := loaded.data_fingerprint):
        raise UserError(f"--baseline: {path}: was trained on data with fingerprint {there}, the student on {here}")
    own = configuration.resolve([configuration.read_record(export / "config.yaml")]).config
    if own.kd.type != kd_methods.LABEL_ONLY:
        raise UserError(f"--baseline: {path}: was trained with kd.type={own.kd.type}, not {kd_methods.LABEL_ONLY}")
    for key in ("train_size", "val_size", "val_split", "test_size", "split_seed", "label_noise"):
        stated, wanted = getattr(own.data, key), getattr(config.data, key)
        if stated != wanted:
            raise UserError(f"--baseline: {path}: was trained with data.{key}={stated}, the student with {wanted}")
    return found
