"""Measure speed and memory side by side, in one process, with alternating repetitions and one torch thread.

Each comparison is the median of paired ratios with a 95% bootstrap interval; a target is met if the whole interval is
within it.  What is measured and why: docs/performance.md.
"""

import ast
import contextlib
import ctypes
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks._measure import Options, Report, Result, command_line, machine_facts, plot

# The parts in the order in which they run, and their modules.  Each module has `run(options)`; the first line of its
# docstring describes the part in --help.
PARTS = {
    "input": "input_pipeline",
    "step": "step",
    "teachers": "teacher_cache",
    "heap": "heap",
    "textbook": "textbook",
    "features": "features",
    "recipes": "recipes",
    "losses": "losses",
    "precision": "precision",
    "metrics": "metrics",
    "processes": "processes",
    "scaling": "scaling",
    "memory": "memory",
    "finish": "finish",
    "evaluation": "evaluation",
    "trials": "trials",
    "gpu": "gpu",
}
M_ARENA_MAX = -8  # of malloc.h


def main(arguments: list[str]) -> None:
    abouts = {part: first_line(module) for part, module in PARTS.items()}
    parser = command_line(__doc__ or "", abouts)
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    if given.pairs < 1:
        parser.error("--pairs must be 1 or more")
    chosen = [part for part in PARTS if part in given.parts or not given.parts]

    with tempfile.TemporaryDirectory() as scratch:
        # Set before torch and datasets are imported, which happens with the first part.
        os.environ.update(
            OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", WANDB_MODE="offline", WANDB_SILENT="true",
            HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=f"{scratch}/datasets",
        )  # fmt: skip
        use_one_heap()
        import torch

        torch.set_num_threads(1)
        report = Report(machine_facts())
        print(f"{report.machine['cpu']}, {report.machine['cores']} cores, torch {report.machine['torch']}")
        for part in chosen:
            print(f"\n{part}: {abouts[part]}", flush=True)
            start = time.perf_counter()
            options = Options(
                pairs=min(given.pairs, 2) if given.quick else given.pairs,
                quick=given.quick,
                scratch=Path(scratch) / part,
                data_path=given.data_path,
                against=given.against.resolve() if given.against else None,
            )
            results = told(importlib.import_module(f"benchmarks.{PARTS[part]}").run(options))
            report.add(part, results, time.perf_counter() - start)
            print(report.table(part), flush=True)
            if given.json:
                report.write_json(given.json)
        print(f"\n{report.verdicts()}")
        if given.plot:
            plot(report, given.plot)


def told(results: Iterable[Result]) -> list[Result]:
    """The results of a part; each that took more than a minute is told at once, on stderr, before the table of all."""
    found, last = [], time.monotonic()
    for result in results:
        found.append(result)
        if time.monotonic() - last > 60:
            print(f"  {result.line(0)}", file=sys.stderr, flush=True)
        last = time.monotonic()
    return found


def use_one_heap() -> None:
    """Let all threads share the main thread's heap, where glibc is the allocator.

    A thread's own heaps are small, and glibc returns them to the system in every step: up to 7,000 page faults, a
    tenth of a step's time.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def first_line(module: str) -> str:
    """The first line of a part's docstring, without importing the part."""
    text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]


if __name__ == "__main__":
    main(sys.argv[1:])
