"""YAML 1.2 scalars and plain values of bounded size, for reading and writing settings."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import yaml

# Limits of a settings file; PyYAML takes a second for this many bytes.
MAX_BYTES = 100_000
MAX_NESTING = 32
MAX_INTEGER = 2**63 - 1
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # characters that UTF-8 or a file's name cannot hold


class Yaml12Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and plain values of bounded size.

    No aliases (a small file could otherwise unfold into gigabytes), no tags, no repeated keys, no deep nesting, no
    text or integer that JSON, a file's name or 64 bits cannot hold.
    """

    nesting = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.events.AliasEvent):
            problem = "aliases (*name) are not supported"
        elif event.tag is not None:
            problem = f"tags ({event.tag}) are not supported; text that looks like a number is put in quotes"
        elif self.nesting >= MAX_NESTING:
            problem = f"nested deeper than {MAX_NESTING} levels"
        elif isinstance(event, yaml.events.ScalarEvent) and UNSTORABLE.search(event.value):
            problem = "characters that are not text (NUL, or half of a surrogate pair)"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self.nesting += 1
        node = super().compose_node(parent, index)
        self.nesting -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = self.DEFAULT_SCALAR_TAG  # a key is always text
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            twice = next(key for key, count in Counter(key.value for key, _ in node.value).items() if count > 1)
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
        return values

    def construct_integer(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if len(text) > 30 or abs(int(text)) > MAX_INTEGER:
            raise yaml.constructor.ConstructorError(
                None, None, f"{text[:30]}...: integers have at most 64 bits", node.start_mark
            )
        return int(text)


class Yaml12Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which YAML 1.2 would read as a number or null, too: `1e5`, `0089`, `None`."""


Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|None|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
):
    for _reader_or_writer in (Yaml12Loader, Yaml12Dumper):
        _reader_or_writer.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
Yaml12Loader.add_constructor("tag:yaml.org,2002:int", Yaml12Loader.construct_integer)
Yaml12Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(re.sub(r"\.(inf|nan)", r"\1", loader.construct_scalar(node).lower())),
)
