"""A network and how it sees images: built, or read from an export."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import nn

from kd_core.config import Config, TrainingConfig
from kd_core.data.dataset import Data
from kd_core.data.recipes import crops_of
from kd_core.data.views import Views
from kd_core.errors import UserError
from kd_core.files import write_json, write_text, writing
from kd_core.loop.processes import shares_batch_norm
from kd_core.models import build as models
from kd_core.models.exported import check_classes
from kd_core.models.predict import Predictor


@dataclass
class Network:
    """A network and how it sees images.

    Args:
        preprocess: size, interpolation, mean and standard deviation of its input.
        views: turns stored images into its input.
        about, settings: what an export says of it, and the run's settings as YAML; empty for a network that was itself
            read from an export, which is not exported again.
    """

    model: nn.Module
    architecture: str
    preprocess: models.Preprocess
    views: Views
    about: dict[str, Any] = field(default_factory=dict)
    settings: str = ""

    @property
    def parameters(self) -> int:
        return models.count_parameters(self.model)

    def export(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write the current weights in timm's format, with `metrics` and the settings in files beside them."""
        models.export(self.model, folder, architecture=self.architecture, preprocess=self.preprocess, **self.about)
        write_json(folder / "metrics.json", metrics)
        write_text(folder / "config.yaml", self.settings)

    def check_export(self, key: str) -> None:
        """UserError naming `key`, the arguments of the network, unless its export can be read back."""
        with TemporaryDirectory() as folder, writing(Path(folder)):
            self.export(Path(folder) / "student", {})
            try:
                self.load_weights(Path(folder) / "student")
            except UserError as error:
                reason = str(error).removeprefix(f"{Path(folder) / 'student'}{os.sep}")
                raise UserError(f"{key}: the trained network could not be read back: {reason}") from None

    def load_weights(self, folder: Path) -> None:
        """Take the weights of an export of the same network."""
        self.model.load_state_dict(models.load_export(folder).model.state_dict())

    def share_batch_norm(self, accelerator: Accelerator, training: TrainingConfig) -> None:
        """Let BatchNorm use the statistics of all processes, where `training.sync_bn` asks for it and GPUs allow it."""
        if shares_batch_norm(accelerator, training.sync_bn):
            self.model = convert_sync_batchnorm(self.model)  # timm's: PyTorch's drops fused activations


def build(config: Config, data: Data) -> Network:
    """The student that `config` describes, with fresh or pretrained weights.

    Its input is normalized by the data set's mean and standard deviation, or by the pretrained network's own.

    Raises:
        UserError: timm cannot build it.
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
        "model_args": models.hub_args(wanted.name, "model.name") | wanted.args,
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "extra": {
            "data_fingerprint": data.fingerprint,
            "image_size": data.image_size,
            "kd": config.kd.model_dump(mode="json"),
        },
    }
    return Network(
        model=model,
        architecture=models.architecture(wanted.name, wanted.stem),
        preprocess=preprocess,
        views=Views(preprocess, data.image_size, crops_of(config)),
        about=about,
        settings=config.to_yaml(),
    )


def from_export(loaded: models.LoadedModel, data: Data, predict: Predictor, where: str) -> Network:
    """The exported network `loaded` on the device, ready for images of `data`.

    Raises:
        UserError: beginning with `where`; its classes are not those of the data.
    """
    check_classes(loaded, data, where)
    views = Views(loaded.preprocess, data.image_size, crops_of(predict.config))
    return Network(predict.prepare(loaded.model), loaded.architecture, loaded.preprocess, views)
