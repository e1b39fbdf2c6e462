"""Measure the code's structure: function lengths, nesting, imports, import cycles.

    python tests/tools/house.py [--repo FOLDER]      a table; `--against FOLDER` prints a second checkout beside it
    python tests/tools/house.py --files > docs/files.md      what each file is for, by its own first sentence

`tests/project/test_house.py` holds the bounds.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

SCRIPTS = ("train_kd.py", "evaluate_kd.py", "compare_kd.py", "sweeps/run_local.py")
PACKAGES = ("kd_core", "kd_methods", "kd_sweeps", "sweeps", "benchmarks")
# A room imports from itself and from those before it.  Rooms in one set do not import from each other.
ORDER: tuple[set[str], ...] = (
    {"errors"},
    {"kd_methods"},
    {"files", "metrics"},
    {"config"},
    {"data", "loop"},
    {"zoo", "models"},
    {"run"},
    {"teachers"},
    {"evaluation"},
    {"report"},
    {"comparison", "export"},
    {"cache", "tracking", "views", "sources", "hf_metrics", "porting"},
    {"kd_sweeps"},
    {"scripts"},
)
SHARED = ({"files", "metrics"}, {"zoo", "models"})  # which may import within their set
NESTED = (ast.If, ast.For, ast.While, ast.With, ast.Try)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(repo: Path) -> list[Path]:
    """The project's own code without tests, relative to `repo`."""
    found = [repo / script for script in SCRIPTS if (repo / script).is_file()]
    found += [path for package in PACKAGES for path in sorted((repo / package).rglob("*.py"))]
    return list(dict.fromkeys(path.relative_to(repo) for path in found))


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def length(function: Function) -> int:
    """Lines from `def` to the end, docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def nesting(node: ast.AST, depth: int = 0) -> int:
    """The depth of nested blocks; `elif` is no deeper than its `if`, inner functions are measured separately."""
    deepest = depth
    for name, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in (child for child in children if isinstance(child, ast.AST)):
            if isinstance(child, Function):
                continue
            chained = name == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If) and len(children) == 1
            deeper = isinstance(child, NESTED) and not chained
            deepest = max(deepest, nesting(child, depth + deeper))
    return deepest


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, known: set[str], *, lazy: bool = True) -> set[str]:
    """The project's modules that a file imports; without `lazy` only those at its top level."""
    nodes = ast.walk(tree) if lazy else ast.iter_child_nodes(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner} if inner in known else {node.module} & known
    return found


def room(module: str) -> str:
    parts = module.split(".")
    if parts[0] in ("kd_methods", "kd_sweeps"):
        return parts[0]
    if parts[0] == "kd_core":
        return parts[1] if len(parts) > 1 else "errors"
    return "scripts"


def rank(module: str) -> int:
    return next(number for number, rooms in enumerate(ORDER) if room(module) in rooms)


def allowed(importer: str, imported: str) -> bool:
    """Whether the order of rooms lets one module import the other."""
    if room(importer) == room(imported) or rank(imported) < rank(importer):
        return True
    return any({room(importer), room(imported)} <= rooms for rooms in SHARED)


class House:
    """One checkout, measured."""

    def __init__(self, repo: Path):
        self.repo = repo
        self.trees = {path: ast.parse((repo / path).read_text(encoding="utf-8")) for path in python_files(repo)}
        self.modules = {module_of(path): path for path in self.trees}

    def longest(self, paths: Iterator[Path] | None = None) -> tuple[int, str]:
        return max(
            (length(function), f"{path}:{function.name}")
            for path in (paths or self.trees)
            for function in functions(self.trees[path])
        )

    def deepest(self) -> tuple[int, str]:
        return max(
            (nesting(function), f"{path}:{function.name}")
            for path, tree in self.trees.items()
            for function in functions(tree)
        )

    def imports_of(self, path: Path, *, lazy: bool = True) -> set[str]:
        return imports(self.trees[path], set(self.modules), lazy=lazy)

    def against_the_order(self) -> list[str]:
        return sorted(
            f"{module} imports {other}"
            for module, path in self.modules.items()
            for other in self.imports_of(path)
            if not allowed(module, other)
        )

    def circles(self) -> list[list[str]]:
        """Modules that reach themselves through imports at the top of files."""
        graph = {module: self.imports_of(path, lazy=False) for module, path in self.modules.items()}
        reach: dict[str, set[str]] = {}
        for start in graph:
            seen, waiting = set(), list(graph[start])
            while waiting:
                module = waiting.pop()
                if module not in seen:
                    seen.add(module)
                    waiting += graph[module]
            reach[start] = seen
        return sorted({tuple(sorted(m for m in reach[s] if s in reach[m])) for s in graph if s in reach[s]})  # type: ignore[arg-type]

    def entries(self) -> int:
        return len([path for path in (self.repo / "kd_core").iterdir() if path.name != "__pycache__"])

    def lines(self, *folders: str) -> int:
        files = [path for folder in folders for path in (self.repo / folder).rglob("*.py")]
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)

    def files(self) -> str:
        """docs/files.md: every file with the first paragraph of its docstring, by folder."""
        lines = ["# What each file is for", "", "Written by `python tests/tools/house.py --files > docs/files.md`."]
        folder = None
        for path, tree in sorted(self.trees.items(), key=lambda item: (str(item[0].parent), item[0].name)):
            if path.parent != folder:
                folder = path.parent
                lines += ["", f"## {'Scripts' if folder == Path() else f'{folder}/'}", ""]
            words = " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())
            lines.append(f"- `{path.name}`: {words.removesuffix(':')}")
        return "\n".join(lines)

    def table(self) -> dict[str, object]:
        scripts = [path for path in self.trees if str(path) in SCRIPTS]
        runs = self.trees.get(Path("benchmarks/_runs.py"))
        text = "" if runs is None else ast.unparse(runs)
        own = sum(len((self.repo / path).read_text(encoding="utf-8").splitlines()) for path in self.trees)
        return {
            "longest function of a script": self.longest(iter(scripts)),
            "longest function": self.longest(),
            "deepest nesting": self.deepest(),
            "modules that train_kd.py imports": len(self.imports_of(Path("train_kd.py"))),
            "entries of kd_core": self.entries(),
            "imports against the order": len(self.against_the_order()) if self.entries() < 25 else "no rooms",
            "circles of imports": self.circles(),
            "threads or patches in benchmarks/_runs.py": "threading" in text or "mock" in text,
            "lines of code": own,
            "lines of tests": self.lines("tests"),
        }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--files", action="store_true", help="print docs/files.md instead")
    options = parser.parse_args(arguments)
    house = House(options.repo)
    if options.files:
        print(house.files())
        return
    before = House(options.against).table() if options.against else {}
    for name, value in house.table().items():
        print(f"{name:45}  {value}" + (f"   before: {before[name]}" if before else ""))
    for line in house.against_the_order():
        print(f"  against the order: {line}")


if __name__ == "__main__":
    main(sys.argv[1:])
