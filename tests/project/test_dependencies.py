"""Dependencies are pinned, used and complete, and no code is run because data name it."""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kd_core.config.yaml12 import Yaml12Loader

ROOT = Path(__file__).resolve().parents[2]
OWN = {path.stem for folder in (ROOT, ROOT / "tests" / "tools") for path in folder.glob("*.py")} | {
    path.name for path in ROOT.iterdir() if path.is_dir()
}
RUNTIME = ("train_kd.py", "evaluate_kd.py", "compare_kd.py", "kd_core", "kd_methods", "kd_sweeps", "sweeps")
DEVELOPMENT = ("tests", "benchmarks")
UNIMPORTED = {"torchvision"}  # timm imports it; pinned to match torch
# Used by the Makefile, not imported.
COMMANDS = {"pytest-xdist": " -n 4 ", "pytest-timeout": " --timeout ", "ruff": "/ruff check", "mypy": "/mypy"}


def sources(*parts: str) -> Iterator[Path]:
    for part in parts:
        path = ROOT / part
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(*parts: str, functions: bool = True) -> set[str]:
    """Names of the distributions of others that are imported; without `functions` only what importing a file needs."""
    modules = set()
    for path in sources(*parts):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if functions else tree.body:
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    providers = importlib.metadata.packages_distributions()
    return {normal(providers[module][0]) for module in modules - OWN - set(sys.stdlib_module_names)}


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def listed(name: str) -> set[str]:
    """The distributions that a requirements file names itself; all must be pinned."""
    lines = (ROOT / name).read_text().splitlines()
    pins = [line for line in lines if line not in ("-r requirements.txt", "-r requirements-export.txt")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins), pins
    return {normal(pin.partition("==")[0]) for pin in pins}


def test_what_runs_needs_what_requirements_txt_lists_and_nothing_else():
    optional = listed("requirements-export.txt")
    assert imported(*RUNTIME) - optional | UNIMPORTED == listed("requirements.txt")
    assert not optional & listed("requirements.txt")


def test_what_one_format_of_exports_needs_is_imported_when_it_is_written_and_nowhere_else():
    optional = listed("requirements-export.txt")
    assert optional <= imported(*RUNTIME)
    assert not optional & imported(*RUNTIME, functions=False)
    own = {ROOT / "kd_core" / "export" / name for name in ("int8.py", "kinds.py", "write.py")}
    others = [str(path.relative_to(ROOT)) for path in sources(*RUNTIME) if path not in own]
    assert not optional & imported(*others)


def test_what_tests_need_besides_is_what_requirements_dev_txt_lists():
    makefile = (ROOT / "Makefile").read_text()
    assert all(words in makefile for words in COMMANDS.values())
    known = listed("requirements.txt") | listed("requirements-export.txt")
    assert imported(*DEVELOPMENT) - known | set(COMMANDS) == listed("requirements-dev.txt")
    assert "-r requirements-export.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()


# ------------------------------------------------------------------------------------------- no code by its name

FORBIDDEN = re.compile(
    r"""(builtins\.)?(eval|exec|compile|__import__)
    | (pickle|cPickle|_pickle|dill|cloudpickle|joblib|marshal|shelve)\..*
    | yaml\.(unsafe_|full_)?load(_all)? | yaml\.(Unsafe|Full)?Loader
    | importlib\.(import_module|util\..*|machinery\..*|reload|__import__) | runpy\..* | code\..*
    | os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*) | pty\..* | ctypes\..* | subprocess\.get(status)?output
    | (tarfile|zipfile|zipimport)\..* | shutil\.unpack_archive | tempfile\.mktemp
    | torch\.(load|jit\.load|hub\..*|package\..*|classes\..*) | numpy\.(load|fromregex)
    | timm\.models\.load_(checkpoint|state_dict) | pandas\.read_pickle""",
    re.VERBOSE,
)
ALLOWED = {
    ("kd_core/run/folder.py", "torch.load"): "weights_only=True",
    ("kd_core/export/write.py", "torch.load"): "weights_only=True",
    ("kd_core/models/weights.py", "torch.load"): "weights_only=True",
    ("kd_core/data/decoding.py", "numpy.load"): "allow_pickle=False",
    ("kd_core/data/cifar_python.py", "pickle.Unpickler"): "its find_class knows five names and imports nothing",
    ("kd_core/data/cifar_python.py", "pickle.UnpicklingError"): "an exception",
    ("kd_core/models/weights.py", "zipfile.ZipFile"): "reads the directory and unpacks nothing",
    ("kd_core/models/weights.py", "zipfile.BadZipFile"): "an exception",
    ("kd_core/config/own_code.py", "compile"): "a file that the command names; nothing that a run or artifact names",
    ("kd_core/config/own_code.py", "exec"): "the same",
    ("kd_methods/__init__.py", "importlib.import_module"): "names of files in kd_methods alone",
    ("kd_methods/feature_losses/__init__.py", "importlib.import_module"): "names of files in feature_losses alone",
    ("kd_methods/logit_losses/__init__.py", "importlib.import_module"): "names of files in logit_losses alone",
    ("kd_core/loop/processes.py", "ctypes.CDLL"): "the C library that is loaded already",
    ("kd_sweeps/fork_server.py", "ctypes.CDLL"): "the C library that is loaded already",
    ("kd_sweeps/fork_server.py", "importlib.import_module"): "the list in this file, given on its command line",
    ("kd_sweeps/fork_server.py", "runpy.run_path"): "the program of a sweep, as python runs it otherwise",
}
GUARDS = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def uses(path: Path) -> Iterator[tuple[str, ast.AST | None]]:
    """(qualified name, the call if it is called) of whatever is imported or built in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {name: name for name in ("eval", "exec", "compile", "__import__")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = alias.name if alias.asname else (
                    alias.name.partition(".")[0])  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def qualified(node: ast.AST) -> str | None:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            return names.get(node.id)
        if isinstance(node, ast.Attribute) and (base := qualified(node.value)):
            return f"{base}.{node.attr}"
        return None

    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if name := qualified(node):
            yield name, calls.get(id(node))


def problems(path: Path) -> set[tuple[str, str]]:
    """(name, why it is refused) of what a file may not do."""
    own, found = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name, set()
    for name, call in uses(path):
        keywords = {word.arg: word.value for word in call.keywords} if isinstance(call, ast.Call) else {}
        if FORBIDDEN.fullmatch(name) and (own, name) not in ALLOWED:
            found.add((name, "forbidden"))
        if name in GUARDS:
            option, wanted = GUARDS[name]
            given = keywords.get(option)
            if not (isinstance(given, ast.Constant) and given.value is wanted):
                found.add((name, f"without {option}={wanted}"))
        for option in {"shell", "trust_remote_code"} & set(keywords):
            found.add((name, option))
    return found


@pytest.mark.parametrize("path", list(sources(*RUNTIME)), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_that_data_name(path):
    assert problems(path) == set()


def test_every_exception_is_still_needed():
    used = {(path.relative_to(ROOT).as_posix(), name) for path in sources(*RUNTIME) for name, _ in uses(path)}
    assert set(ALLOWED) <= used
    assert issubclass(Yaml12Loader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)", "exec(x)", "__import__(x)", "f = eval", "import pickle; pickle.loads(x)",
        "from pickle import load as l; l(x)", "import yaml as y; y.unsafe_load(x)", "import yaml; yaml.load(x, L)",
        "import torch; torch.load(x)", "from torch import load; load(x, weights_only=False)",
        "import numpy as np; np.load(x)", "import importlib; importlib.import_module(x)",
        "import os; os.system(x)", "import subprocess; subprocess.run(x, shell=True)",
        "import tarfile; tarfile.open(x)", "import datasets; datasets.load_dataset(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_search_finds(tmp_path, code):
    (tmp_path / "a.py").write_text(code)
    assert problems(tmp_path / "a.py")
