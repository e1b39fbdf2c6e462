"""The command line of train_kd.py: its switches, the settings that files and words give, and hints that repeat it."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import kd_methods
from kd_core import config as configuration
from kd_core.config import Config, Layer, Resolved
from kd_core.errors import CommandLine, UserError
from kd_core.files import local_path
from kd_methods import feature_losses

LAUNCHERS = ("accelerate", "torchrun")
LAUNCHED = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")  # what launchers set in the environment


@dataclass(frozen=True)
class Options:
    """What the switches of train_kd.py say."""

    config: list[str]  # files of settings, later ones win; empty: the quickstart
    resume: str  # auto, never, or a run folder
    seeds: list[int]  # at least one
    no_wandb: bool
    check: bool
    print_config: bool


def parse(arguments: list[str], description: str = "") -> tuple[Options, Resolved]:
    """The words of the command line -> switches and resolved settings.

    With --help, print `description` and all settings, and exit.  UserError lists every mistake, one per line.
    """
    given, rest = _parser().parse_known_args(arguments)
    files = configuration.read_layers(given.config)
    if given.help:
        configuration.import_code(given.imports, *files)
        print(f"{description}\n{configuration.describe_keys()}")
        sys.exit(0)
    layers = files or configuration.read_layers([configuration.QUICKSTART])
    overrides, code = configuration.parse_with_code(rest, given.imports, *layers)
    layers += [overrides, code]
    if given.resume not in ("auto", "never"):
        configuration.require_code(local_path(given.resume, "--resume") / "config.yaml")
    if given.no_wandb:
        layers.append(Layer("--no-wandb", {"wandb": {"mode": "disabled"}}))
    resolved = _without_idle_parts(configuration.resolve(layers))
    resolved.notices += _maps_that_lie_elsewhere(resolved.config)
    seeds = read_seeds(given.seeds, given.resume, overrides) or [resolved.config.training.seed]
    resolved.config = configuration.with_seed(resolved.config, seeds[0])
    options = Options(
        config=given.config,
        resume="never" if given.fresh else given.resume,
        seeds=seeds,
        no_wandb=given.no_wandb,
        check=given.check,
        print_config=given.print_config,
    )
    return options, resolved


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine("train_kd.py")
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--import", dest="imports", action="append", default=[])
    parser.add_argument("--resume", default="auto")
    parser.add_argument("--seeds")
    for switch in ("--fresh", "--no-wandb", "--check", "--print-config"):
        parser.add_argument(switch, action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def _without_idle_parts(resolved: Resolved) -> Resolved:
    """The settings without a comparison in a trial and without teachers that the method ignores; with notices."""
    config, notices = resolved.config, list(resolved.notices)
    training = config.training
    if training.compare_with_baseline and configuration.in_trial():
        notices.append("training.compare_with_baseline: left out, this is a sweep's trial")
        training = training.model_copy(update={"compare_with_baseline": False})
        config = config.model_copy(update={"training": training})
    if config.teachers and config.kd.type == kd_methods.LABEL_ONLY:
        count = len(config.teachers)
        notices.append(f"kd.type {kd_methods.LABEL_ONLY!r} does not use the {count} teacher(s) given")
        config = without_teachers(config)
    return Resolved(config, notices)


def _maps_that_lie_elsewhere(config: Config) -> list[str]:
    """A notice if maps of a teacher's clean view are compared with those of a student that sees flips and crops."""
    clean = [f"teachers[{index}]" for index, teacher in enumerate(config.teachers) if teacher.view == "clean"]
    moved = config.data.flip or config.data.crop_padding or config.augment.resized_crop
    classes = {entry.loss: feature_losses.loss_class(entry.loss) for entry in getattr(config.kd, "features", [])}
    losses = [name for name, one in classes.items() if "map" in one.kinds and not one.of_teacher_logits]
    if not (clean and moved and losses):
        return []
    return [
        f"kd.features ({', '.join(losses)}): maps of {', '.join(clean)}, whose view is clean, are those of whole "
        "images, not mirrored, unlike the student's; view: shared with cache.mode: fixed shows both the same"
    ]


def read_seeds(text: str | None, resume: str, overrides: Layer) -> list[int]:
    """The seeds that --seeds asks for, none without it; UserError where the other words do not fit."""
    if text is None:
        return []
    words = text.split(",")
    seeds = [int(word) for word in words if re.fullmatch(r"\s*[0-9]{1,10}\s*", word) and int(word) < 2**31]
    if len(seeds) < len(words) or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: is {text!r}, expected different whole numbers below 2^31, such as 0,1,2")
    if configuration.in_trial():
        raise UserError("--seeds: not in a sweep's trial, which is one run; let the sweep vary training.seed")
    if "seed" in (overrides.values.get("training") or {}):
        raise UserError("--seeds: replaces training.seed; give only one of them")
    if resume not in ("auto", "never"):
        raise UserError(f"--seeds: one run folder cannot be continued for all; --resume is {resume!r}")
    return seeds


def without_teachers(config: Config) -> Config:
    """The same student, data and training, with the labels alone."""
    method = kd_methods.config_class(kd_methods.LABEL_ONLY).model_validate({})
    return config.model_copy(update={"teachers": [], "kd": method})


# ------------------------------------------------------------------------------------------------------- hints


def own_command(script: str, arguments: list[str]) -> list[str]:
    """The words that started `script`, as they can be typed again; with a launcher, where the system tells it."""
    own = [sys.argv[0] if Path(sys.argv[0]).name == script else script, *arguments]
    parent = _parents_words() if any(name in os.environ for name in LAUNCHED) else []
    if parent[-len(own) :] != own:
        return ["python", *own]
    if len(parent) > 1 and Path(parent[1]).name in LAUNCHERS:  # installed as a script of this python
        del parent[0]
    return [Path(parent[0]).name, *parent[1:]]


def _parents_words() -> list[str]:
    """The command line of the process that started this one; empty where the system does not tell (it is Linux's)."""
    try:
        content = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return []
    return os.fsdecode(content).split("\0")[:-1]


def without(words: list[str], key: str, *, switch: bool = False) -> list[str]:
    """The words but for those that set `key`, a pattern: `--key=value`, `--key value`, `key=value`, a bare switch."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not (word.startswith("--") or equals) or not re.fullmatch(key, name.removeprefix("--")):
            kept.append(word)
        elif not (equals or switch) and rest and not rest[0].startswith("--"):
            del rest[0]
    return kept


def to_go_on(script: str, arguments: list[str]) -> str:
    """What to say after a stop: the command that goes on from the checkpoint."""
    said = "the same command continues where it stopped"
    if configuration.in_trial():  # by itself it would be another run
        return said
    own = own_command(script, arguments)
    words = without(own, "fresh", switch=True)
    if re.search(r"--resume[= ]never\b", " ".join(words)):
        words = without(words, "resume")
    return f"{said if words == own else 'to go on where it stopped'}: {shlex.join(words)}"


def another_method(script: str, arguments: list[str], method: str) -> str:
    """The user's own command with another `kd.type` than `method`, whose settings have their defaults."""
    another = next(name for name in kd_methods.TRY_NEXT if name != method)
    words = without(without(own_command(script, arguments), r"kd(\..*)?|resume"), "fresh", switch=True)
    return shlex.join([*words, f"--kd.type={another}"])
