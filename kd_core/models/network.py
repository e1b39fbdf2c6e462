"""The student: its network, what it sees, and how it is exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kd_core.config import Config
from kd_core.data.dataset import Data
from kd_core.data.views import Augmentation, Views
from kd_core.files import write_json, write_text
from kd_core.models import build as models


@dataclass
class Student:
    """A network, its preprocessing, and what an export of it must say."""

    model: nn.Module
    architecture: str
    preprocess: models.Preprocess
    views: Views
    about: dict[str, Any]
    settings: str  # the run's, as YAML

    @property
    def parameters(self) -> int:
        return models.count_parameters(self.model)

    def export(self, folder: Path, figures: dict[str, Any]) -> None:
        """Write the network as it is now in timm's format, and beside it all that evaluating it elsewhere needs."""
        models.export(self.model, folder, architecture=self.architecture, preprocess=self.preprocess, **self.about)
        write_json(folder / "metrics.json", figures)
        write_text(folder / "config.yaml", self.settings)


def build(config: Config, data: Data) -> Student:
    """A freshly initialised (or pretrained) student.  UserError if timm cannot build it.

    Trained from scratch it is normalised by the data set's mean and deviation, pretrained by its own.
    """
    wanted = config.model
    model = models.create_model(
        wanted.name,
        num_classes=data.num_classes,
        img_size=wanted.img_size,
        stem=wanted.stem,
        pretrained=wanted.pretrained,
        args=wanted.args,
        where="model.name",
    )
    own = wanted.normalization == "model" or (wanted.normalization == "auto" and wanted.pretrained)
    mean, std = (None, None) if own else (data.mean, data.std)
    preprocess = models.preprocess_of(model, img_size=wanted.img_size, mean=mean, std=std)
    about = {
        "model_args": dict(wanted.args),
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "extra": {
            "data_fingerprint": data.fingerprint,
            "image_size": data.image_size,
            "kd": config.kd.model_dump(mode="json"),
        },
    }
    return Student(
        model=model,
        architecture=models.architecture(wanted.name, wanted.stem),
        preprocess=preprocess,
        views=Views(preprocess, data.image_size, Augmentation.of(config.data)),
        about=about,
        settings=config.to_yaml(),
    )
