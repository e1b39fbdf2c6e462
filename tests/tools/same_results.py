#!/usr/bin/env python
"""Train in two checkouts and compare the results, bit for bit: checks that a refactoring changes nothing.

    python tests/tools/same_results.py --against OTHER_CHECKOUT [--quick] [--folder FOLDER]

Both train the same tiny runs on digits with the same seeds: every method in one process, in two processes, and stopped
by a signal and resumed; the quickstart, shortened, with its teachers and its student alone; a trial of a local sweep.
Compares the rows of metrics.jsonl, without times and memory usage, and all weights of every run.  `--quick` leaves out
the quickstart, and two processes for all methods but one.

exit status: 0 all results are equal, 1 some differ
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
METHODS = (
    "baseline", "average", "ca_weighted", "confidence", "aekd", "best", "ca_mkd", "covariance", "ebkd", "fixed",
    "min_ce", "random", "dynamic",
)  # fmt: skip
TEACHERS = ("cifar_resnet8", "cifar_wrn_16_1")
MEASURED = ("time", "per_second", "memory")  # parts of names of metrics that differ between equal runs
# with dropout, so that the random generators matter within an epoch
STUDENT = "{name: test_vit, img_size: 32, args: {patch_size: 8, drop_rate: 0.2, proj_drop_rate: 0.1}}"
SMALL = (
    "--no-wandb", "--training.max_epochs=2", "--training.log_every=3", "--training.compare_with_baseline=false",
    "--evaluation.report=false",
)  # fmt: skip
TINY = (*SMALL, f"--model={STUDENT}", "--data.train_size=320", "--data.batch_size=32", "--training.seed=3")
SWEEP = """
program: train_kd.py
method: grid
metric: {name: val/accuracy, goal: maximize}
parameters: {training.learning_rate: {values: [0.003]}}
command: ["${env}", "${interpreter}", "${program}", --config, configs/quickstart.yaml, "${args}"]
"""
Results = dict[str, tuple[list[dict[str, object]], dict[str, torch.Tensor]]]


@dataclass
class Checkout:
    """A checkout and the folder in which it trains."""

    code: Path
    home: Path

    def start(self, output: str, *words: str) -> subprocess.Popen[str]:
        """`python words`, run folders in `output`; nothing is written in the checkout."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONDONTWRITEBYTECODE": "1"}
        folders = [f"--output_dir={self.home / output}", f"--cache.dir={self.home / 'cache'}"]
        return subprocess.Popen(
            [sys.executable, *words, *folders], cwd=self.code, env=kept | own, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, output: str, *words: str) -> None:
        self.end(self.start(output, *words))

    def end(self, process: subprocess.Popen[str], status: int = 0) -> None:
        text, _ = process.communicate()
        if process.returncode != status:
            raise SystemExit(f"{self.code}: exit status {process.returncode}, expected {status}\n{text}")

    def teach(self) -> None:
        """Train the teachers of all other runs."""
        for name in TEACHERS:
            model = (f"--model={{name: {name}}}", "--teachers=[]", "--kd.type=baseline", f"--name={name}")
            self.run("teachers", "train_kd.py", *SMALL, *model)

    def student(self, method: str) -> list[str]:
        """The arguments that train a student by `method`."""
        folders = sorted((self.home / "teachers").glob("*-????????"))
        team = "" if method == "baseline" else ", ".join(f"{{weights: {folder}}}" for folder in folders)
        return ["train_kd.py", *TINY, f"--kd.type={method}", f"--teachers=[{team}]", "--name=run"]

    def one_process(self, output: str, method: str) -> None:
        self.run(output, *self.student(method))

    def two_processes(self, output: str, method: str) -> None:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        self.run(output, *launcher, *self.student(method))

    def stopped_and_resumed(self, output: str, method: str) -> None:
        words = [*self.student(method), "--training.max_epochs=6", "--training.save_every_steps=4"]
        process = self.start(output, *words)
        while process.poll() is None and not list((self.home / output).glob("*/checkpoints/latest")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        self.end(process, 128 + signal.SIGTERM)
        self.run(output, *words)

    def quickstart(self, output: str) -> None:
        shortened = ("--data.train_size=400", "--training.max_epochs=2", "--evaluation.report=false", "--no-wandb")
        self.run(output, "train_kd.py", *shortened)

    def sweep(self, output: str) -> None:
        path = self.home / "sweep.yaml"
        path.write_text(SWEEP)
        words = [word for word in self.student("baseline")[1:] if word != "--no-wandb"]
        self.run(output, "sweeps/run_local.py", str(path), "--", *words)

    def results(self, output: str) -> Results:
        """{run without its id: (rows, weights)} of all runs in `output`."""
        found: Results = {}
        for folder in sorted((self.home / output).glob("*-????????")):
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            kept = [{key: row[key] for key in row if not any(part in key for part in MEASURED)} for row in rows]
            weights = {
                f"{path.parent.relative_to(folder)}: {name}": tensor
                for path in sorted(folder.rglob("model.safetensors"))
                for name, tensor in load_file(path).items()
            }
            summary = json.loads((folder / "summary.json").read_text())
            name = f"{folder.name[:-9]} {summary['kd_type']} {summary['student_model']}"
            if name in found:
                raise SystemExit(f"{self.home / output}: two runs are called {name!r}, they cannot be told apart")
            found[name] = (kept, weights)
        if not found:
            raise SystemExit(f"{self.home / output}: holds no run")
        return found


def cases(quick: bool, against: Path = ROOT) -> dict[str, Callable[[Checkout, str], None]]:
    """{name: function that trains in a given folder}, of the methods that the other checkout has, too."""
    found: dict[str, Callable[[Checkout, str], None]] = {}
    for method in METHODS:
        if not (against / "kd_methods" / f"{method}.py").is_file():
            print(f"{method + ', which the other lacks':40} left out")
            continue
        kinds = {"one process": Checkout.one_process, "stopped and resumed": Checkout.stopped_and_resumed}
        if not quick or method == METHODS[-1]:
            kinds["two processes"] = Checkout.two_processes
        for kind, train in kinds.items():
            found[f"{method}, {kind}"] = lambda side, output, train=train, method=method: train(side, output, method)
    if not quick:
        found["quickstart"] = Checkout.quickstart
    found["trial of a local sweep"] = Checkout.sweep
    return found


def differences(ours: Results, theirs: Results) -> list[str]:
    """The differences, one line per run."""
    if ours.keys() != theirs.keys():
        return [f"other runs: {', '.join(sorted(ours))} | {', '.join(sorted(theirs))}"]
    found = []
    for name, (rows, weights) in ours.items():
        other_rows, other_weights = theirs[name]
        if rows != other_rows:
            first = next((i for i, (a, b) in enumerate(zip(rows, other_rows, strict=False)) if a != b), None)
            where = f"{len(rows)} | {len(other_rows)} rows" if first is None else f"row {first + 1} of {len(rows)}"
            found.append(f"{name}: metrics, {where}")
        tensors = [key for key in weights if key not in other_weights or not same(weights[key], other_weights[key])]
        if tensors or weights.keys() != other_weights.keys():
            found.append(f"{name}: weights, {len(tensors)} of {len(weights)} tensors")
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def compare(ours: Checkout, theirs: Checkout, quick: bool) -> bool:
    """Train in both checkouts and print a line per case; returns whether all results are equal."""
    wanted, equal = cases(quick, theirs.code), True
    with ThreadPoolExecutor(2) as both:
        list(both.map(Checkout.teach, (ours, theirs)))
        for name, train in {"teachers": None, **wanted}.items():
            output = name.replace(",", "").replace(" ", "-")
            if train:
                list(both.map(lambda side, train=train, output=output: train(side, output), (ours, theirs)))
            found = differences(ours.results(output), theirs.results(output))
            equal = equal and not found
            print(f"{name:40} {'; '.join(found) if found else 'equal'}", flush=True)
    return equal


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="the other checkout")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--folder", type=Path, help="where to train; default: a temporary folder, which is removed")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        home = (options.folder or Path(temporary)).resolve()
        sides = [Checkout(ROOT, home / "ours"), Checkout(options.against.resolve(), home / "theirs")]
        for side in sides:
            side.home.mkdir(parents=True)
        return 0 if compare(*sides, options.quick) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
