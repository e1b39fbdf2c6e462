"""The user's own command, which hints repeat with what is to change."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import kd_methods
from kd_core.config import in_trial

LAUNCHERS = ("accelerate", "torchrun")
LAUNCHED = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")  # what launchers set in the environment


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
    said = "the same command goes on where it stopped"
    if in_trial():  # by itself it would be another run
        return said
    own = own_command(script, arguments)
    words = without(own, "fresh", switch=True)
    if re.search(r"--resume[= ]never\b", " ".join(words)):
        words = without(words, "resume")
    return f"{said if words == own else 'to go on where it stopped'}: {shlex.join(words)}"


def another_method(script: str, arguments: list[str], method: str) -> str:
    """The user's own command with another `kd.type` than `method`, whose settings have their defaults."""
    another = [name for name in kd_methods.names() if name not in (method, kd_methods.LABEL_ONLY)][-1]
    words = without(without(own_command(script, arguments), r"kd(\..*)?|resume"), "fresh", switch=True)
    return shlex.join([*words, f"--kd.type={another}"])
