"""Files of a user's own code that a command names with --import: each is run once, identified by its content.

Such a file may register networks with timm, add methods and logit losses (`kd_methods.add`, `kd_methods.add_loss`), and
add data sources (`kd_core.data.sources.add`).  docs/own_code.md shows one.
"""

from __future__ import annotations

import hashlib
import linecache
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import kd_methods
from kd_core.config import registry
from kd_core.errors import UserError, causes, first_line
from kd_core.files import local_path, reading

NETWORK, METHOD, LOSS, SOURCE = "network", "method", "loss", "source"


@dataclass(frozen=True)
class File:
    """A file that was run.  path: absolute; provides: (kind, name) of all that it has added."""

    path: Path
    content: bytes = field(repr=False)
    provides: frozenset[tuple[str, str]] = frozenset()

    @property
    def digest(self) -> str:
        """SHA-256 of its content, in hex."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def adds_methods_alone(self) -> bool:
        """Whether it has added methods or losses, and neither a network nor a data source."""
        return bool(self.provides) and {kind for kind, _ in self.provides} <= {METHOD, LOSS}


_files: dict[str, File] = {}  # by digest, in the order in which they were run
_paths: dict[str, File] = {}  # by the paths that commands gave, absolute


def run(names: Iterable[str], key: str = "--import") -> list[File]:
    """Run those of the files that have not been run yet; each content once.

    UserError, which begins with `key`, for a file that is missing or that fails: with the line where it does.
    """
    found = [_run(local_path(name, key).absolute(), f"{key}: {name}") for name in names]
    return list({file.digest: file for file in found}.values())


def files() -> list[File]:
    """All that were run in this process."""
    return list(_files.values())


def file(path: str) -> File:
    """The file that was run from `path`, with its content at that time; a file that was not run is only read."""
    absolute = local_path(path, "import").absolute()
    return _paths.get(str(absolute)) or File(absolute, _read(absolute, f"import: {path}"))


def digests(imports: Iterable[str]) -> dict[str, dict[str, str]]:
    """What W&B is told of a run's own code: names and digests, not the code; nothing without own code."""
    found = [file(path) for path in imports]
    return {"own_code": {own.path.name: own.digest for own in found}} if found else {}


def provider(kind: str, name: str) -> File | None:
    """The user's file that added the network, method, loss or data source of this name; None if none did."""
    return next((file for file in _files.values() if (kind, name) in file.provides), None)


def _read(path: Path, where: str) -> bytes:
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{where}: no such file; the path of a .py file is needed")
    with reading(where):
        return path.read_bytes()


def _run(path: Path, where: str) -> File:
    # What is run, what identifies the run and what is kept in its folder are the same bytes.
    file = File(path, _read(path, where))
    if known := _files.get(file.digest):
        _paths[str(path)] = known
        return known
    module = types.ModuleType(f"{path.stem}_{file.digest[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # timm, pydantic and dataclasses look there for what a class's names mean
    _paths[str(path)] = file  # marks its lines as the user's while it runs
    before = _there()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Overwriting .* in registry")  # else timm replaces its own network
            exec(compile(file.content, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        mistake = _mistake(error, path)
        del sys.modules[module.__name__], _paths[str(path)]
        raise UserError(f"{where}: {mistake}") from error
    file = File(path, file.content, frozenset(_there() - before))
    _files[file.digest] = _paths[str(path)] = file
    return file


def _there() -> set[tuple[str, str]]:
    """(kind, name) of everything that settings can name."""
    import timm  # takes seconds, and only own code needs it here

    names = {
        NETWORK: timm.list_models(),
        METHOD: kd_methods.names(),
        LOSS: kd_methods.losses(),
        SOURCE: list(registry.added_sources),
    }
    return {(kind, name) for kind, each in names.items() for name in each}


# ------------------------------------------------------------------------------------------------------- mistakes


@dataclass(frozen=True)
class Place:
    """A line of a user's file."""

    path: Path
    line: int
    function: str = "<module>"

    def __str__(self) -> str:
        within = "" if self.function == "<module>" else f", in {self.function}"
        source = linecache.getline(str(self.path), self.line).strip()
        return f"{self.path}, line {self.line}{within}{f' ({source[:100]})' if source else ''}"


def place_of(error: BaseException | None) -> Place | None:
    """The innermost line of a user's file in the traceback of `error`, else of what caused it; None without any."""
    for cause in causes(error):
        found = None
        for trace in _traces(cause.__traceback__):
            code = trace.tb_frame.f_code
            if code.co_filename in _paths:
                found = Place(Path(code.co_filename), trace.tb_lineno, code.co_name)
        if found:
            return found
    return None


def _traces(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def told(error: BaseException) -> str:
    """What an error says, preceded by the line of the user's file that it comes from, if it comes from one."""
    place = place_of(error)
    return f"{f'{place}: ' if place else ''}{type(error).__name__}: {first_line(error, 300)}"


def _mistake(error: BaseException, path: Path) -> str:
    """Why a file could not be run, with the line."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    place = place_of(error)
    line = f"line {place.line}: " if place else ""
    if isinstance(error, UserWarning) and str(error).startswith("Overwriting "):
        return f"{line}there is a network {str(error).split()[1]!r} already; choose another name"
    if isinstance(error, SystemExit):
        return f"{line}exits the program; an imported file may only define and add"
    return f"{line}{type(error).__name__}: {first_line(error, 300)}"
