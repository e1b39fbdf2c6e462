"""Experiment files of other projects: read as plain data, in bounded time and memory, and taken key by key.

Nothing in a file is run or imported. torchdistill's files use anchors, aliases and tags: `!join` is text put together,
and what `!import_call`, `!import_get` and `!getattr` would call is read as the data that names it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from kd_core.config import MAX_NESTING, parse_yaml
from kd_core.config.yaml12 import MAX_BYTES, Yaml12Loader
from kd_core.errors import UserError, did_you_mean
from kd_core.files import reading

MAX_UNFOLDED = 10 * MAX_BYTES  # characters of a file with each alias replaced by what it stands for
MAX_KEYS, MAX_NAME = 2000, 1000  # of a file whose aliases are unfolded; characters of SECTION.KEY
MAX_PROBLEMS = 30  # shown at once
AS_DATA = ("!import_call", "!import_get", "!getattr")
JOIN = "!join"


class ExperimentLoader(Yaml12Loader):
    """Yaml12Loader that also takes aliases, as long as they unfold to little, and torchdistill's tags."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._unfolded: dict[int, tuple[int, int]] = {}  # by node: characters and levels, aliases replaced

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent):
            node = yaml.composer.Composer.compose_node(self, parent, index)
            if id(node) not in self._unfolded:
                self._refuse(f"*{event.anchor} stands within what it stands for", event)
            if self.nesting + self._unfolded[id(node)][1] > MAX_NESTING:
                self._refuse(f"nested deeper than {MAX_NESTING} levels", event)
            return node
        tag = event.tag
        if tag in (*AS_DATA, JOIN):
            event.tag = None
        node = super().compose_node(parent, index)
        if tag == JOIN:
            node.tag = JOIN
        self._unfolded[id(node)] = self._measured(node)
        if self._unfolded[id(node)][0] > MAX_UNFOLDED:
            self._refuse(f"aliases unfold to more than {MAX_UNFOLDED:,} characters", event)
        return node

    def _measured(self, node: Any) -> tuple[int, int]:
        """Characters and levels of a node whose parts are measured."""
        if isinstance(node, yaml.ScalarNode):
            return len(node.value) + 1, 1
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes = [self._unfolded[id(part)] for part in parts]
        return 1 + sum(size for size, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)

    def _refuse(self, problem: str, event: Any) -> None:
        raise yaml.composer.ComposerError(None, None, problem, event.start_mark)

    def join(self, node: Any) -> str:
        """`!join [a, b]`: the parts as one text."""
        parts = self.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else [None]
        if not all(isinstance(part, (str, int, float)) for part in parts):
            raise yaml.constructor.ConstructorError(None, None, f"{JOIN} takes a list of words", node.start_mark)
        return "".join(map(str, parts))


ExperimentLoader.add_constructor(JOIN, ExperimentLoader.join)


def read_experiment(path: Path) -> dict[str, Any]:
    """The mapping in an experiment file; UserError names the file and, for mistakes in YAML, the line."""
    with reading(path):
        if not path.is_file():
            raise UserError(f"{path}: {'is no file of text' if path.exists() else 'no such file'}")
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8")
    values = parse_yaml(text, str(path), loader=ExperimentLoader)
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no sections of settings, so it is no experiment file")
    return values


class Keys:
    """The keys of an experiment file, `SECTION.KEY`, taken one by one; those that nobody takes are problems.

    A value of the wrong kind is a problem and counts as its default, so that all problems are found in one pass.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.problems: list[str] = []
        self._values: dict[str, Any] = {}
        self._flatten("", values)
        self._left = dict.fromkeys(self._values)

    def _flatten(self, prefix: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if len(self._values) > MAX_KEYS or len(name) > MAX_NAME:
                raise UserError(f"{name[:60]}...: more than {MAX_KEYS:,} keys, or a name over {MAX_NAME:,} letters")
            if isinstance(value, dict):
                self._flatten(f"{name}.", value)
            elif name in self._values:
                self.problem(name, "is given twice")
            else:
                self._values[name] = value

    def problem(self, name: str, text: str) -> None:
        self.problems.append(f"{name}: {text}")

    def refuse(self, name: str, why: str) -> None:
        """A problem with a key or section that cannot be translated; what is below it is taken."""
        value = self._values.get(name)
        self.problem(name, f"{shown(value)} cannot be translated: {why}" if name in self._values else why)
        self.drop(name)

    def drop(self, *names: str) -> list[str]:
        """Take keys, and sections with all that is in them, without a use; those that are there."""
        there = [name for name in names if name in self._values or self.below(name)]
        for name in names:
            for key in [key for key in self._left if key == name or key.startswith(f"{name}.")]:
                del self._left[key]
        return there

    def below(self, name: str) -> list[str]:
        """The keys one level below a section, in order."""
        prefix = f"{name}." if name else ""
        found = [key.removeprefix(prefix) for key in self._values if key.startswith(prefix)]
        return list(dict.fromkeys(key.partition(".")[0] for key in found))

    def has(self, name: str) -> bool:
        """Whether the key is there and says something."""
        return self._values.get(name) not in (None, [], {}, "") or bool(self.below(name))

    def take(self, name: str, default: Any = None) -> Any:
        """The value as it is; `default` where it is missing or null."""
        self._left.pop(name, None)
        value = self._values.get(name)
        return default if value is None else value

    def number(self, name: str, default: float | None = None) -> float:
        """A number >= 0; a key without default is needed."""
        value = self.take(name, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
            return value
        self.problem(name, "is missing" if value is None else f"is {shown(value)}, expected a number >= 0")
        return 1.0 if default is None else default

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number >= 0."""
        value = self.number(name, default)
        if value == int(value):
            return int(value)
        self.problem(name, f"is {shown(value)}, expected a whole number")
        return 1

    def wholes(self, name: str, default: list[int] | None = None) -> list[int]:
        """A list of whole numbers."""
        value = self.take(name, default)
        if isinstance(value, list) and all(type(item) is int for item in value):
            return value
        self.problem(name, "is missing" if value is None else f"is {shown(value)}, expected a list of whole numbers")
        return default or []

    def word(self, name: str, default: str | None = None) -> str:
        """A text."""
        value = self.take(name, default)
        if isinstance(value, str) and value:
            return value
        self.problem(name, "is missing" if value is None else f"is {shown(value)}, expected a name")
        return default or ""

    def one_of(self, name: str, known: dict[str, Any], what: str, default: str | None = None) -> Any:
        """What `known` has for the text; None, and a problem that lists the names, where it has nothing."""
        value = self.word(name, default)
        if value and value not in known:
            names = ", ".join(known)
            near = did_you_mean(value, known)
            self.problem(name, f"{shown(value)} cannot be translated: no {what} of this name{near}; known: {names}")
        return known.get(value)

    def same(self, name: str, *expected: Any, why: str) -> None:
        """A problem unless the value is one of `expected` or missing."""
        value = self.take(name)
        if value is not None and value not in expected:
            self.problem(name, f"{shown(value)} cannot be translated: {why}")

    def check(self, path: Path) -> None:
        """UserError with one line for each problem, and for each key that nobody has taken."""
        left = [f"{name}: cannot be translated: nothing is known about this key" for name in self._left]
        lines = list(dict.fromkeys([*self.problems, *left]))
        if lines:
            more = [f"and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
            raise UserError("\n".join([*(f"{path}: {line}" for line in lines[:MAX_PROBLEMS]), *more]))


def shown(value: Any) -> str:
    """A value of a file, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
