"""Files and words of the command line -> layers of settings.

Scalars are read as YAML 1.2: `1e-3` is a number, `no` is a word, booleans are `true` and `false` in any case, and
`None` or `null` is allowed where a key is optional.  W&B's `${args}` writes the same.  Where a key takes text alone, a
word stays as it was written: `name: 1.10` is the text 1.10, and `--wandb.notes="a # b"` is not YAML.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_core.config import own_code
from kd_core.config.keys import is_text, types_at, types_below
from kd_core.config.schema import Config
from kd_core.config.yaml12 import MAX_BYTES, MAX_NESTING, UNSTORABLE, Yaml12Loader
from kd_core.errors import UserError, first_line
from kd_core.files import local_path, reading, sha256_of

PROJECT_ROOT = Path(__file__).resolve().parents[2]
MAX_BASES = 4  # levels of files that build on others, and files that one names
COMMAND_LINE = "command line"  # where a setting comes from, in messages
QUICKSTART = "configs/quickstart.yaml"
IMPORTS = "imports"  # folder of a run folder with copies of the own code that it was trained with


def _keep_words(node: Any, declared: list[Any]) -> None:
    """Keep numbers and booleans of a YAML tree as the words that were written, wherever a key takes only text."""
    if isinstance(node, yaml.ScalarNode):
        if is_text(declared) and node.tag != "tag:yaml.org,2002:null":
            node.tag = Yaml12Loader.DEFAULT_SCALAR_TAG
        return
    for item in node.value:
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        if key is None or isinstance(key, yaml.ScalarNode):
            inner = [one for outer in declared for one in types_below(outer, key.value if key else "")]
            _keep_words(value, inner)


def parse_yaml(
    text: str, where: str, path: Sequence[str] | None = None, loader: type[Yaml12Loader] = Yaml12Loader
) -> Any:
    """YAML text -> plain values, in bounded time and memory; UserError names `where` and the line.

    `path`: the key that the values belong to; where it takes text alone, words stay as they are written.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{where}: larger than {MAX_BYTES:,} bytes, the limit for settings")
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        if path is not None:
            _keep_words(node, types_at(path))
        return reader.construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # escapes beyond Unicode
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}:{line} not valid YAML: {problem or first_line(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of settings: one mapping."""
    with reading(path):
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes, the limit for settings")
        text = path.read_text(encoding="utf-8")
    values = parse_yaml(text, str(path), ())
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold 'section: ...' lines, holds a {type(values).__name__}")
    return values


def find_file(name: str, key: str) -> Path:
    """A file named in a configuration: relative to the working folder, else to the project."""
    for path in (local_path(name, key), PROJECT_ROOT / name):
        if path.is_file():
            return path
    raise UserError(f"{key}: no such file: {name}")


@dataclass
class Layer:
    """One source of settings: `values` nested, `origin` for messages."""

    origin: str
    values: dict[str, Any]
    record: Path | None = None  # the config.yaml of a run, export or artifact that it comes from


def read_layers(names: Sequence[str], key: str = "--config") -> list[Layer]:
    """The settings of several files, lowest first: later files win, and each wins over the files in its `base`."""
    return [layer for name in names for layer in _with_base(find_file(name, key), name, ())]


def _with_base(path: Path, name: str, above: tuple[Path, ...]) -> list[Layer]:
    """The layers of the files in the `base` of a file, relative to its folder, and its own.

    `above`: the files that build on this one.  UserError for a circle, and for more than MAX_BASES levels or files.
    """
    layer = _layer_of(path, name)
    if layer.record or "base" not in layer.values:
        return [layer]
    named = layer.values.pop("base")
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(file, str) for file in named):
        raise UserError(f"{name}: base: is {named!r:.60}, expected a list of YAML files")
    above = (*above, path.resolve())
    if max(len(above), len(named)) > MAX_BASES:
        raise UserError(f"{name}: base: at most {MAX_BASES} files, {MAX_BASES} levels deep")
    layers: list[Layer] = []
    for file in named:
        below = path.parent / local_path(file, f"{name}: base")
        if below.resolve() in above:
            raise UserError(f"{name}: base: {file} leads back to itself: files build on each other in a circle")
        if not below.is_file():
            raise UserError(f"{name}: base: no such file: {file} (it is relative to {path.parent})")
        layers += _with_base(below, str(Path(name).parent / file), above)
    return [*layers, layer]


def _layer_of(path: Path, name: str) -> Layer:
    """The settings in a file, called `name` in messages; the files that it imports are relative to its folder.

    A run's own config.yaml is a record: see `read_record`.
    """
    if any((path.parent / beside).is_file() for beside in ("summary.json", "identity.json", "config.json")):
        return read_record(path, name)
    values = read_yaml(path)
    named = values.get("import")
    named = [named] if isinstance(named, str) else named
    if isinstance(named, list):
        values["import"] = [
            str(path.parent / local_path(file, f"{name}: import")) if isinstance(file, str) else file for file in named
        ]
    return Layer(name, values)


def read_record(path: Path, origin: str = "") -> Layer:
    """The settings in a config.yaml that a run, an export or an artifact holds.

    The files of own code that it names are left out: they are run only if a command names them.
    """
    values = read_yaml(path)
    if values.pop("import", None) and (own := own_code.files()):
        values["import"] = [str(file.path) for file in own]  # those that a command has named
    return Layer(origin or str(path), values, path)


def import_remedy(path: Path) -> str:
    """Which option takes up the own code that config.yaml `path` records; empty where nothing is missing.

    A run folder keeps copies of the files.
    """
    named = read_yaml(path).get("import")
    named = [Path(file) for file in named if isinstance(file, str)] if isinstance(named, list) else []
    if not named:
        return ""
    run = next((folder for folder in path.absolute().parents[:4] if (folder / IMPORTS).is_dir()), None)
    files = sorted((run / IMPORTS).glob("*.py")) if run else named
    known = {word for own in own_code.files() for word in (own.path.name, own.digest)}
    missing = [file for file in files if file.name not in known and not (run and sha256_of(file) in known)]
    if not missing:
        return ""
    here = Path.cwd()
    shown = [file.relative_to(here) if file.is_relative_to(here) else file for file in missing]
    options = shlex.join(import_words(shown))
    which = f" (copied to {shown[0].parent})" if run else ""
    return (
        f"{path}: was trained with the code in {', '.join(file.name for file in missing)}{which}, and code runs only "
        f"if the command names it. If you trust it, add: {options}"
    )


def require_code(path: Path) -> None:
    """UserError if config.yaml `path` records own code that has not been run."""
    if path.is_file() and (remedy := import_remedy(path)):
        raise UserError(remedy)


def import_code(named: list[str], *layers: Layer) -> Layer:
    """Run the files of own code that --import and `layers` name; the layer that says which, above all others.

    UserError if one is missing or fails, or if one of `layers` is a record whose own code nobody has named.
    """
    if in_trial():
        named = [name for name in named if not name.startswith("[")]  # W&B's echo of what the run has recorded
    found = own_code.run(named)
    for layer in layers:
        files = layer.values.pop("import", [])
        files = [files] if isinstance(files, str) else files
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise UserError(f"{layer.origin}: import: is {files!r:.60}, expected a list of .py files")
        found += own_code.run(files, f"{layer.origin}: import")
        if layer.record:
            require_code(layer.record)
    return Layer("--import", {"import": list(dict.fromkeys(str(file.path) for file in found))} if found else {})


def parse_with_code(arguments: list[str], named: list[str], *layers: Layer) -> tuple[Layer, Layer]:
    """The settings among the words of the command line, and what `import_code` gives for them and `layers`.

    Own code runs first, since it may add settings, whose types decide how words are read.  In a sweep's trial W&B's
    echoes are left out.
    """

    def read() -> Layer:
        layer = parse_overrides(arguments)
        return without_echoes(layer) if in_trial() else layer

    code, overrides = import_code(named, *layers, read()), read()
    overrides.values.pop("import", None)
    return overrides, code


def parse_overrides(arguments: list[str]) -> Layer:
    """`--a.b=value`, `--a.b value`, `a.b=value` and a bare `--flag` -> nested values (the forms that W&B writes)."""
    values: dict[str, Any] = {}
    problems = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") and "=" not in word:
            problems.append(f"{word!r} is not understood; overrides look like --section.key=value")
            continue
        key, equals, text = word.removeprefix("--").partition("=")
        bare = not equals and (not rest or rest[0].startswith("--"))
        if not equals:
            text = "true" if bare else rest.pop(0)
        try:
            if key.count(".") >= MAX_NESTING:
                raise UserError(f"--{key[:80]}...: nested deeper than {MAX_NESTING} levels")
            if split := _split_by_the_shell(key, text, rest):
                del rest[: len(split)]
                whole = f"--{key}={shlex.quote(' '.join([text, *split]))}"
                raise UserError(f"--{key}: the shell split this value: quote it: {whole}")
            if bare and is_text(types_at(key.split("."))):
                raise UserError(f"--{key}: its value is missing: --{key}=TEXT")
            _assign(values, key.split("."), _value_of(key, text))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return Layer(COMMAND_LINE, values)


def _split_by_the_shell(key: str, text: str, rest: list[str]) -> list[str]:
    """The words of `rest` that seem to belong to `text`, which lacked quotes: none where it is whole.

    That is so if they are no settings, and `text` leaves a bracket open or its key takes text.
    """
    following = list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
    is_open = any(text.count(left) > text.count(right) for left, right in ("[]", "{}"))
    strange = any("=" not in word or not types_at(word.partition("=")[0].split(".")) for word in following)
    return following if strange and (is_open or is_text(types_at(key.split(".")))) else []


def _value_of(key: str, text: str) -> Any:
    """The value of the command line's word `text` for `key`: the word itself where that takes text, else YAML.

    Where it takes text, quotes around all of it are removed, and an empty word, null and None mean no value.
    """
    path = key.split(".")
    declared = types_at(path)
    if declared and not is_text(declared):
        return parse_yaml(text, f"--{key}", path)
    if text in ("", "null", "Null", "NULL", "None"):
        return None
    if UNSTORABLE.search(text):  # bytes of the command line that are not UTF-8, say
        raise UserError(f"--{key}: is {text[:60]!r}: not UTF-8 text")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            return parse_yaml(text, f"--{key}")
        except UserError:  # quotes of two words, say
            return text
    return text


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"--{'.'.join(path)}: {part!r} was already given as a plain value")
    values[path[-1]] = merge(values.get(path[-1]), value, len(path))


def merge(low: Any, high: Any, depth: int = 0) -> Any:
    """`high` over `low`: dicts key by key; `{'0': ...}` reaches into a list; everything else replaces.

    `{}` within a section is a setting with its defaults, and `{from: ..., to: ...}` a whole schedule: both replace too.
    `depth`: how many keys lead to the values; 1 in a section.
    """
    if isinstance(low, dict) and isinstance(high, dict):
        if (depth > 1 and not high) or {"from", "to"} <= high.keys():
            return high
        return {**low, **{key: merge(low.get(key), value, depth + 1) for key, value in high.items()}}
    if isinstance(low, list) and isinstance(high, dict) and high and high.keys() <= {str(i) for i in range(len(low))}:
        return [merge(item, high[str(i)], depth) if str(i) in high else item for i, item in enumerate(low)]
    return high


def without_echoes(layer: Layer) -> Layer:
    """A trial's arguments without the facts that a run's W&B configuration holds besides its settings.

    W&B may start a preempted trial again with the whole configuration that it has recorded.  Where no run has recorded
    any, such names are mistakes as everywhere.
    """
    if "data_fingerprint" not in layer.values:
        return layer
    facts = {*Config().flat(num_classes=0), "parameters", "data_fingerprint", "environment", "own_code", "import"}
    return Layer(layer.origin, {key: value for key, value in layer.values.items() if key not in facts})


def import_words(files: Iterable[str | Path]) -> list[str]:
    """The arguments with which a command imports these files of a user's own code."""
    return [word for file in files for word in ("--import", str(file))]


def in_trial() -> bool:
    """Whether this process is the trial of a sweep, W&B's or a local one (`sweeps/run_local.py`)."""
    return "WANDB_SWEEP_ID" in os.environ or "KD_TRIAL" in os.environ


def trial_run_id() -> str | None:
    """The run id that a sweep gives its trial, under which an interrupted one goes on; None outside of a sweep."""
    return os.environ.get("KD_TRIAL") or (os.environ.get("WANDB_RUN_ID") if in_trial() else None)
