"""Damage files at random and read them: the result must be a value or one message, quickly, in bounded memory.

    python tests/tools/fuzz_files.py FOLDER SEED KIND=COUNT ...

Run by tests/project/test_fuzz.py, in a process of its own.
"""

from __future__ import annotations

import os
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

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, Python finds only what lies beside this file

from image_files import cifar_python, features, image_tree, parquet, rows_of

from kd_core.config import Config, DataConfig
from kd_core.data.dataset import load_data
from kd_core.errors import UserError
from kd_core.models import build as models
from kd_core.models import weights
from kd_core.models.build import create_model
from kd_core.run import folder as checkpoints
from kd_core.run.folder import MetricsFile, RunFolder
from kd_core.teachers import cache
from kd_core.teachers.logits_file import LogitsFile
from kd_sweeps.sweep_file import read_sweep

TOUCHED = 512 * 2**20  # bytes of memory that reading a file of some kilobytes may take
# A fuse before the machine's memory is gone; so far away that threads' stacks and arenas do not blow it.
ASKED = 16 * 2**30
SECONDS = 20.0  # for one file

Reader = Callable[[], object]


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to eight changes: bits, bytes, runs of them, large numbers, cuts, repeats."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at = draw.randrange(max(1, len(found)))
        at = draw.choice((at, at % 200, len(found) - 1 - at % 200 if len(found) > 200 else at))  # headers, footers
        match draw.randrange(7):
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
            case 5 if found:  # by a likely one: a digit of JSON by a letter or by another digit
                found[at % len(found)] = draw.choice(found)
            case _:
                found[at:at] = found[at : at + draw.randrange(1, 300)]
    return bytes(found)


# ------------------------------------------------------------------------ kinds: a folder -> its reader


def small_model() -> torch.nn.Module:
    return create_model("cifar_resnet8", num_classes=3)


def safetensors(folder: Path) -> Reader:
    save_file(small_model().state_dict(), folder / "a.safetensors")
    return lambda: weights.load_strict(small_model(), weights.read_state_dict(folder / "a.safetensors"), "here", 3)


def pt(folder: Path) -> Reader:
    torch.save({"state_dict": small_model().state_dict(), "epoch": 3}, folder / "a.pt")
    return lambda: weights.load_strict(small_model(), weights.read_state_dict(folder / "a.pt"), "here", 3)


def export(folder: Path) -> Reader:
    model = small_model()
    models.export(
        model, folder / "export", architecture="cifar_resnet8", model_args={}, num_classes=3,
        class_names=["a", "b", "c"], preprocess=models.preprocess_of(model), extra={"image_size": 32},
    )  # fmt: skip
    return lambda: models.load_export(folder / "export").image_size


def checkpoint(folder: Path) -> Reader:
    run, model = RunFolder(folder / "run"), small_model()
    tensors = {"optimizer": torch.optim.SGD(model.parameters(), 0.1).state_dict(), "method": {}, "within_epoch": None}
    checkpoints.save_latest(run, lambda path: path.mkdir(), tensors, {"epoch": 1, "best": {"epoch": 1, "value": 0.25}})

    def read() -> object:
        found = checkpoints.load_latest(run, lambda text: None)
        assert found and found[1] == tensors and found[2]["best"] == {"epoch": 1, "value": 0.25}  # or refused
        return found

    return read


def run_folder(folder: Path) -> Reader:
    config = Config.model_validate({"output_dir": str(folder)})
    run = checkpoints.create_run(config, "abc", "ab12cd34")
    metrics = MetricsFile(run.metrics_file)
    for step in range(5):
        metrics.append({"epoch": step, "val/accuracy": step / 5})
    metrics.close()

    def read() -> object:
        checkpoints.find_run(config, "abc")
        checkpoints.read_metrics(checkpoints.open_run(config, "abc", str(run.path)).metrics_file)
        return run.finished

    return read


def logits(folder: Path) -> Reader:
    save_file({"train": torch.zeros(50, 3)}, folder / "a.safetensors", metadata={"train": "abc"})
    return lambda: LogitsFile(folder / "a.safetensors", "here", 3)


def cached_logits(folder: Path) -> Reader:
    shape = {"views": 2, "rows": 9, "classes": 3}
    parts = {"teacher": "a", "images": "b"}

    def read() -> object:
        cache.listed(folder)
        store = cache.open_store(folder, parts, **shape, about={"teacher": "a"}, max_gb=1.0, notify=lambda text: None)
        lacking = torch.arange(18)[~store.sound(torch.arange(18))]
        store.write(lacking, torch.ones(18, 3).half()[lacking])
        assert bool((store.read(torch.arange(18)) == 1).all())
        return None

    read()
    return read


def sweep(folder: Path) -> Reader:
    shutil.copytree(ROOT / "sweeps", folder / "sweeps", ignore=shutil.ignore_patterns("*.py", "*.sh", "__pycache__"))
    for number, path in enumerate(sorted((folder / "sweeps").rglob("*.yaml"))):
        if number % 6:  # all are read each time, though one is damaged
            path.unlink()

    def read() -> object:
        problems = []
        for path in sorted((folder / "sweeps").rglob("*.yaml")):
            try:
                found = read_sweep(path)
                if found.method == "grid":
                    found.grid_values(found.grid_size() - 1)
            except UserError as mistake:
                problems.append(str(mistake))
        if problems:
            raise UserError("\n".join(problems))
        return None

    return read


def images(source: str, folder: Path, files: Path) -> Reader:
    """Data decoded from `files`; earlier decoded data are in `folder` and damaged too if that is the same folder."""
    caches = folder.with_name(f"{folder.name}-cache")

    def read() -> object:
        shutil.rmtree(caches, ignore_errors=True)
        datasets.config.HF_DATASETS_CACHE = caches / "hf"
        config = DataConfig.model_validate({"source": source, "path": str(files), "val_size": 0})
        try:
            return load_data(config, model_sizes=[32], cache_dir=caches, show_progress=False).test()
        finally:
            whole(caches)

    return read


def whole(caches: Path) -> None:
    """Decoded splits are complete or absent; no temporary files are left."""
    for path in (caches / "images").glob("*"):
        if path.is_dir():
            assert {file.name for file in path.iterdir()} == {"header.json", "images.npy", "labels.npy", "sums.npy"}
        else:
            assert path.suffix in (".json", ".lock"), path
    assert not [path for path in caches.rglob("*") if "incomplete" in path.name and path.suffix != ".lock"], caches


def parquet_files(folder: Path) -> Reader:
    return images("parquet", folder, parquet(folder / "files", train=24, test=3))


def cifar_files(folder: Path) -> Reader:
    return images("cifar_python", folder, cifar_python(folder / "files", per_class=6))


def imagefolder(folder: Path) -> Reader:
    return images("imagefolder", folder, image_tree(folder / "files", "train/cat", "train/dog", "test/cat", "test/dog"))


def disk(folder: Path) -> Reader:
    split = datasets.Dataset.from_dict(rows_of(12), features=features())
    datasets.DatasetDict(train=split, test=split).save_to_disk(str(folder / "files"))
    return images("disk", folder, folder / "files")


def decoded(folder: Path) -> Reader:
    """Data that were decoded before; damaged parts are decoded again."""
    files = cifar_python(folder.with_name("cifar-source"), per_class=6)
    config = DataConfig.model_validate({"source": "cifar_python", "path": str(files), "val_size": 0})

    def read() -> object:
        data = load_data(config, model_sizes=[32], cache_dir=folder, show_progress=False)
        whole(folder)
        return data.train.labels.sum(), data.mean

    return read


KINDS: dict[str, Callable[[Path], Reader]] = {
    "safetensors": safetensors,
    "pt": pt,
    "export": export,
    "checkpoint": checkpoint,
    "run": run_folder,
    "logits": logits,
    "cached_logits": cached_logits,
    "sweep": sweep,
    "parquet": parquet_files,
    "cifar_python": cifar_files,
    "imagefolder": imagefolder,
    "disk": disk,
    "decoded": decoded,
}


# ------------------------------------------------------------------------------------------ damage and read


def names(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def peak() -> int:
    """This process's peak memory in bytes; unlike ru_maxrss, without that of the process that started it."""
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024


def campaign(kind: str, count: int, seed: int, folder: Path) -> str:
    """Damage a file, read it and restore it, `count` times.  Fails unless it is read or refused with a message."""
    folder.mkdir(parents=True)
    read = KINDS[kind](folder)
    read()  # undamaged it can be read
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    originals, there = {path: path.read_bytes() for path in files}, names(folder)
    draw, refused = random.Random(f"{kind} {seed}"), 0
    for number in range(count):
        path = draw.choice(files)
        path.write_bytes(damaged(originals[path], draw))
        print(f"{kind} {number} {path.relative_to(folder)}", file=sys.stderr, flush=True)  # known even if it dies
        began, before = time.monotonic(), peak()
        try:
            read()
        except UserError as error:
            refused += 1
            assert str(error).strip(), path
        assert time.monotonic() - began < SECONDS, (kind, number, path)
        assert peak() - before < TOUCHED, (kind, number, path)
        assert names(folder) == there, names(folder) ^ there
        for path, content in originals.items():
            path.write_bytes(content)
    read()
    return f"{kind}: {count} damaged files, {refused} refused, the others read"


def main(folder: Path, seed: int, *wanted: str) -> None:
    np.seterr(all="ignore")
    taken = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (taken + ASKED, taken + ASKED))
    for words in wanted:
        kind, count = words.split("=")
        print(campaign(kind, int(count), seed, folder / kind), flush=True)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
