"""Damage files at random and read them: what comes back must be a value or one message, quickly, in bounded memory.

    python tests/fuzz_files.py KIND COUNT SEED FOLDER      run by tests/test_fuzz.py, a process for each kind
"""

from __future__ import annotations

import pickle
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors.torch import save_file
from test_data import cifar_python, parquet

from kd_core import checkpoints, models, weights
from kd_core.checkpoints import RunFolder
from kd_core.config import DataConfig
from kd_core.data import load_data
from kd_core.errors import UserError
from kd_core.logits_file import LogitsFile
from kd_core.models import create_model

MEMORY = 3 * 2**30  # bytes of address space beyond what the libraries took, for one file of some kilobytes
SECONDS = 20.0  # for one file


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to eight changes: bits, runs of bytes, large numbers, cuts, repeats."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at = draw.randrange(max(1, len(found)))
        at = draw.choice((at, at % 200, len(found) - 1 - at % 200 if len(found) > 200 else at))  # headers, footers
        match draw.randrange(6):
            case 0 if found:
                found[at % len(found)] ^= 1 << draw.randrange(8)
            case 1:
                found[at : at + draw.randrange(1, 9)] = draw.randbytes(draw.randrange(1, 9))
            case 2:
                found[at : at + 8] = draw.choice((2**63 - 1, 2**32, 2**31 - 1, 0)).to_bytes(8, "little")
            case 3:
                del found[at:]
            case 4:
                del found[at : at + draw.randrange(1, 100)]
            case _:
                found[at:at] = found[at : at + draw.randrange(1, 300)]
    return bytes(found)


# ------------------------------------------------------------------------ kinds: a folder -> its reader


def small_model() -> torch.nn.Module:
    return create_model("cifar_resnet8", num_classes=3)


def state_dict(folder: Path, name: str) -> Callable[[], object]:
    if name.endswith(".safetensors"):
        save_file(small_model().state_dict(), folder / name)
    else:
        torch.save({"state_dict": small_model().state_dict(), "epoch": 3}, folder / name)
    return lambda: weights.load_strict(small_model(), weights.read_state_dict(folder / name), "here", 3)


def export(folder: Path) -> Callable[[], object]:
    model = small_model()
    models.export(
        model, folder / "export", architecture="cifar_resnet8", model_args={}, num_classes=3,
        class_names=["a", "b", "c"], preprocess=models.preprocess_of(model), extra={"image_size": 32},
    )  # fmt: skip
    return lambda: models.load_export(folder / "export")


def checkpoint(folder: Path) -> Callable[[], object]:
    run, model = RunFolder(folder / "run"), small_model()
    tensors = {"optimizer": torch.optim.SGD(model.parameters(), 0.1).state_dict(), "method": {}, "within_epoch": None}
    checkpoints.save_latest(run, lambda path: path.mkdir(), tensors, {"epoch": 1})
    return lambda: checkpoints.load_latest(run, lambda text: None)


def logits(folder: Path) -> Callable[[], object]:
    save_file({"train": torch.zeros(50, 3)}, folder / "a.safetensors", metadata={"train": "abc"})
    return lambda: LogitsFile(folder / "a.safetensors", "here", 3)


def images(folder: Path, source: str) -> Callable[[], object]:
    if source == "parquet":
        parquet(folder / "files", train=24, test=3)
    else:
        cifar_python(folder / "files", per_class=6)
    caches = folder.with_name(f"{folder.name}-cache")

    def read() -> object:
        shutil.rmtree(caches, ignore_errors=True)
        datasets.config.HF_DATASETS_CACHE = caches / "hf"
        config = DataConfig.model_validate({"source": source, "path": str(folder / "files"), "val_size": 0})
        return load_data(config, model_sizes=[32], cache_dir=caches, show_progress=False).test()

    return read


KINDS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "safetensors": lambda folder: state_dict(folder, "a.safetensors"),
    "pt": lambda folder: state_dict(folder, "a.pt"),
    "export": export,
    "checkpoint": checkpoint,
    "logits": logits,
    "parquet": lambda folder: images(folder, "parquet"),
    "cifar_python": lambda folder: images(folder, "cifar_python"),
}


def main(kind: str, count: int, seed: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    read = KINDS[kind](folder)
    read()  # undamaged it can be read
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    originals = {path: path.read_bytes() for path in files}
    taken = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    draw, refused = random.Random(seed), 0
    for number in range(count):
        path = draw.choice(files)
        path.write_bytes(damaged(originals[path], draw))
        print(f"{number} {path.relative_to(folder)}", file=sys.stderr, flush=True)  # known even if the process dies
        began = time.monotonic()
        try:
            read()
        except UserError as error:
            refused += 1
            assert str(error), path
        assert time.monotonic() - began < SECONDS, (number, path)
        for path in files:
            path.write_bytes(originals[path])
    read()
    print(f"{kind}: {count} damaged files, {refused} refused, the others read")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    np.seterr(all="ignore")
    assert pickle  # the kinds write it
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
