"""`training.mixed_precision: auto`: the autocast type in which a network trains fastest here, measured and remembered.

Whether bf16 is faster depends on the processor: with matrix units twice as fast, without them half as fast.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.nn import functional as F

from kd_core.config import Config, code_digests, identity_of, read_yaml, trial_run_id, with_precision
from kd_core.config.privacy import redacted
from kd_core.errors import UserError, first_line
from kd_core.files import held_lock, local_path, read_object, writable_folder, write_json, writing
from kd_core.loop.optimizer import create_optimizer
from kd_core.loop.timing import wait_for
from kd_core.models import build as models
from kd_core.run.folder import RunFolder

STEPS, WARM_UP = 10, 2  # timed, and before
ENOUGH, FEWEST = 20.0, 3  # after so many seconds this many steps suffice: without units bf16 is slow
BATCH, CLASSES = 64, 100  # at most so many images; the classes hardly matter
PAYS = 0.9  # the share of the time in float32 below which another type, which rounds more, is taken
ALL = ("no", "bf16", "fp16")
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
NOTES = "precision.json"


def choose(config: Config, resume: str, device: torch.device, say: Callable[[str], None]) -> str:
    """The precision of a run whose settings say `auto`: "no", "bf16" or "fp16".  One process decides for all.

    A run that is resumed keeps its own, a sweep has one for all its trials.  Else it is what was measured for the
    network on this machine before, or is measured now.  `resume` as in `folder.find_or_create`.
    """
    types = ["no", _other_type(config, device)]
    if (known := _of_run(config, resume)) is not None:
        say(f"training.mixed_precision: auto is {known}, that of the run with these settings")
        return known
    file, key = _place(config, device)
    lock = held_lock(file.with_suffix(".lock"), lambda owner: say(f"{file}: {owner} measures; waiting for it"))
    try:
        notes = _read(file)
        if (found := notes.get(key)) in ALL:
            say(f"training.mixed_precision: auto is {found}, as measured before ({file})")
            return str(found)
        try:
            chosen, words = measure(config, device, types)
        except Exception as error:  # settings that cannot train: they are checked next, with better messages
            say(f"training.mixed_precision: auto is no, as nothing could be measured: {first_line(error, 200)}")
            return "no"
        with writing(file.parent):
            write_json(file, {**notes, key: chosen})
    finally:
        lock.release()
    say(f"training.mixed_precision: auto is {chosen}: {words} (remembered in {file})")
    return chosen


def measure(config: Config, device: torch.device, types: list[str]) -> tuple[str, str]:
    """Which of two types trains the student faster, and the times in words; the first unless the second pays."""
    seconds = step_seconds(config, device, types)
    first, second = (statistics.median(seconds[name]) for name in types)
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    words = (
        f"in {types[1]} a step of {config.model.name} takes {ratio:.2f} of its time in float32 "
        f"({1000 * second:.3g} and {1000 * first:.3g} ms)"
    )
    return types[ratio < PAYS], words


def step_seconds(config: Config, device: torch.device, types: list[str]) -> dict[str, list[float]]:
    """Seconds of training steps of the student, by type: of each STEPS, or fewer if they are slow, in turns."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        step = training_step(config, device)
        for name in [*types] * WARM_UP:
            step(name)
        seconds: dict[str, list[float]] = {name: [] for name in types}
        end = time.perf_counter() + ENOUGH
        while len(seconds[types[0]]) < STEPS and (len(seconds[types[0]]) < FEWEST or time.perf_counter() < end):
            for name in types:
                seconds[name].append(step(name))
    return seconds


def training_step(config: Config, device: torch.device) -> Callable[[str], float]:
    """A training step in a given type; it returns its seconds."""
    wanted, training = config.model, config.training
    model: nn.Module = models.create_model(
        wanted.name, num_classes=CLASSES, img_size=wanted.img_size, stem=wanted.stem, args=wanted.args,
        where="model.name",
    )  # fmt: skip
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout).train()
    optimizer = create_optimizer(model, training, device)
    side = models.input_size(wanted.name, wanted.img_size, wanted.stem, "model.name")
    count = min(config.part // PartialState().num_processes, BATCH)
    images = torch.randn(count, 3, side, side).to(device).to(memory_format=layout)
    labels = torch.randint(CLASSES, (count,)).to(device)
    scaler = torch.amp.GradScaler(device.type)

    def step(name: str) -> float:
        wait_for(device)
        began = time.perf_counter()
        with torch.autocast(device.type, TYPES.get(name), enabled=name in TYPES):
            loss = F.cross_entropy(model(images).float(), labels)
        if name == "fp16":
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        wait_for(device)
        return time.perf_counter() - began

    return step


def _other_type(config: Config, device: torch.device) -> str:
    """The type that float32 is compared with."""
    # An old GPU computes bf16 too, slowly, with the arithmetic of float32.
    old = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "fp16" if old and not config.training.skip_nonfinite else "bf16"


def _of_run(config: Config, resume: str) -> str | None:
    """The precision of the run that would be resumed, or whose result would be printed; the latest of several."""
    if resume == "never":
        return None
    if resume != "auto":
        file = local_path(resume, "--resume") / "config.yaml"
        kept = (read_yaml(file).get("training") or {}).get("mixed_precision") if file.is_file() else None
        return kept if kept in ALL else None
    usual = [name for name in ALL if name != "fp16" or not config.training.skip_nonfinite]
    wanted = {name: _comparable(redacted(identity_of(with_precision(config, name), ""))) for name in usual}
    # A sweep's trial goes on under the id that the sweep gives it, and is no other run.
    run_id = trial_run_id()
    found: list[tuple[float, str]] = []
    for path in Path(config.output_dir).glob(f"*-{run_id or '*'}/identity.json"):
        there = _comparable(_read(path))
        found += [(RunFolder(path.parent).began, name) for name, own in wanted.items() if own == there]
    return max(found)[1] if found else None


def _comparable(identity: dict[str, Any]) -> dict[str, Any]:
    """A run's identity without what is not known yet: the data, and the content of teachers that are downloaded."""
    teachers = [{**teacher, "weights": None} for teacher in identity.get("teachers", ())]
    return {**identity, "images": "", "teachers": teachers}


def _place(config: Config, device: torch.device) -> tuple[Path, str]:
    """The file of notes, and the name there: of the sweep, or of the network and what it runs on."""
    wanted = config.model
    if storage := os.environ.get("KD_SWEEP"):  # the file that the workers of a local sweep share
        return writable_folder(Path(storage).parent, "KD_SWEEP") / f"{Path(storage).stem}.{NOTES}", "sweep"
    if sweep := os.environ.get("WANDB_SWEEP_ID"):
        return writable_folder(Path(config.output_dir), "output_dir") / f".sweep-{sweep}.{NOTES}", "sweep"
    network: dict[str, Any] = {"size": wanted.img_size, "stem": wanted.stem, **wanted.args}
    layout = "channels last" if config.training.channels_last else "channels first"
    network |= code_digests(config.imports)  # which may be the network's
    key = f"{_processor(device)}, torch {torch.__version__}: {wanted.name} {network}, {layout}"
    return writable_folder(config.cache.folder, "cache.dir") / NOTES, key


def _processor(device: torch.device) -> str:
    """The GPU, or what PyTorch knows of the CPU: its vector units, not its name, decide on bf16's speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    units = {"bf16": torch.cpu._is_avx512_bf16_supported, "AMX": torch.cpu._is_amx_tile_supported}
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *(name for name, has in units.items() if has())])


def _read(file: Path) -> dict[str, Any]:
    """What a file of notes holds: nothing if it is missing or damaged, since it can be measured again."""
    try:
        return read_object(file)
    except UserError:
        return {}
