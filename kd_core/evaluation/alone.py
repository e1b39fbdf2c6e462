"""The same student trained without teachers: its logits, which its run folder keeps for all runs compared with it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from kd_core.data.dataset import Data
from kd_core.errors import first_line
from kd_core.evaluation.figures import Predictions
from kd_core.files import json_sha256, sha256_of, write_bytes
from kd_core.models.build import load_export
from kd_core.models.exported import export_in
from kd_core.models.network import Network, from_export
from kd_core.models.predict import Images, Predictor

FILE = "logits.safetensors"  # in the run folder: logits float32 [n,C] by split name; metadata: what they are of
MOST = 2**26  # bytes; what is larger is computed again


class Alone:
    """The student alone, from its run folder."""

    def __init__(self, folder: Path, data: Data, predict: Predictor):
        self._file, self._data, self._predict = folder / FILE, data, predict
        self._export = export_in(folder)

    def __call__(self, images: Images, name: str) -> Tensor:
        """Logits float32 [n,C] of the images of split `name`: kept ones, or computed; all processes call this."""
        # The main process reads for all: where one finds nothing, all must compute, together.
        main = self._predict.accelerator.is_main_process
        [kept] = broadcast_object_list([self._kept(images, name) if main else None])
        if kept is not None:
            return kept
        return self._predict(self._network.model, images, self._network.views, f"student alone on {name}")

    def _kept(self, images: Images, name: str) -> Tensor | None:
        """The kept logits of these images, if there are any."""
        if not self._file.is_file():
            return None
        try:
            with safe_open(self._file, "pt") as file:
                if (file.metadata() or {}).get(name) != _key(images.split.digest, self._export, self._predict):
                    return None
                logits: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            tqdm.write(f"{self._file}: {first_line(error, 200)}; the student alone is evaluated again")
            return None
        return logits if logits.shape == (len(images), self._data.num_classes) else None

    @cached_property
    def _network(self) -> Network:
        where = f"the student alone: {self._export}"
        return from_export(load_export(self._export), self._data, self._predict, where)


def keep_logits(folder: Path, export: Path, predict: Predictor, seen: dict[str, Predictions]) -> None:
    """Keep what the student in `export`, trained without teachers, gave on its splits, in its run folder.

    Large splits of many classes are left out.  Main process only.
    """
    small = {name: found for name, found in seen.items() if found.student.nbytes <= MOST}
    keys = {name: _key(found.digest, export, predict) for name, found in small.items()}
    tensors = {name: found.student.contiguous() for name, found in small.items()}
    write_bytes(folder / FILE, save(tensors, metadata=keys))


def _key(images: str, export: Path, predict: Predictor) -> str:
    """A digest of all that logits depend on; `images`: the split's."""
    accelerator, training = predict.accelerator, predict.config.training
    parts = [
        images,
        *(sha256_of(export / name) for name in ("config.json", "model.safetensors")),
        accelerator.mixed_precision,
        training.channels_last,
        accelerator.device.type,
    ]
    return json_sha256(parts)
