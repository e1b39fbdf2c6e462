#!/usr/bin/env python
"""Train the grid on digits through train_kd.py: every weighting with every logit loss, and every feature loss.

    python tests/tools/grid_campaign.py [--only TEXT] [--every N] [--record FILE] [--folder FOLDER]

Each case is a run of two short epochs with teachers of two kinds.  Its exit status, its rows and its summary are
checked.  Then, for every weighting with `kd`, every logit loss with `average` and every feature loss, a run of the same
settings is stopped by SIGTERM within its second epoch and resumed: it has to end bit for bit as the one that was not.
One case of each kind runs in two processes too, and has to train as in one; stopped within an epoch and resumed in two,
as in two.

exit status: 0 all cases are as expected, 1 some are not
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kill_campaign import differences, result_of, trained_teachers
from method_variants import ONE_VIEW
from warm_process import run_ranks

import kd_methods
from kd_methods import feature_losses

# With a class token, as usual; and with a head of average pooling and one linear layer, as some losses need it.
VIT = {"name": "test_vit", "img_size": 32, "args": {"patch_size": 8}}
POOLED_VIT = {**VIT, "args": {"patch_size": 8, "class_token": False, "global_pool": "avg", "fc_norm": False}}
TEACHERS = {"convolutional": {"name": "cifar_wrn_16_1"}, "vit": VIT, "vit_pooled": POOLED_VIT}  # sorted
# With dropout, so that the random generators matter within an epoch.
DROPOUT = {"drop_rate": 0.2, "proj_drop_rate": 0.1}
STUDENT = {**VIT, "args": {"patch_size": 8, "depth": 3, **DROPOUT}}
CONVOLUTIONAL = {"name": "cifar_resnet8"}
STEPS, STOP_AFTER = 4, 6  # steps of an epoch; the step after which a run is stopped
LONG, STOP_LONG_AFTER = 12, 14  # the same for several processes, which agree to stop every ten steps
STOPPED = 143
# Settings of some feature losses: few negatives, and what the heads of both teachers pool.
FEATURES: dict[str, dict[str, Any]] = {"crd": {"width": 16, "negatives": 32}}
FEATURES |= {name: {"teacher": [["act1"], ["norm"]]} for name in ("ca_mkd", "cat_kd", "sdd")}
# What runs in two processes as in one: a weighting of the batch, a logit loss, projectors without BatchNorm, relations
# of the gathered batch, and banks of all images.
IN_TWO = {
    "aekd x logit loss kd": {},
    "average x logit loss dkd": {},
    "feature loss fitnet": {"regressor": "plain"},
    "feature loss rkd": {"gather": True},
    "feature loss crd": {},
}
TOLERANCE = 1e-3  # of metrics in one and two processes, which add up in another order


@dataclass
class Case:
    """A run, and what is done with it beyond."""

    name: str
    kd: dict[str, Any]
    student: dict[str, Any] = field(default_factory=lambda: STUDENT)
    resumed: bool = False
    team: tuple[int, int] = (0, 1)  # places in TEACHERS
    steps: int = STEPS

    def words(self, home: Path, teachers: list[Path]) -> list[str]:
        """The arguments of train_kd.py for a run in `home`."""
        first, second = (str(teachers[place]) for place in self.team)
        team = [{"weights": first}, {"weights": second, "view": "clean"}]
        return [
            f"--output_dir={home / 'runs'}", f"--cache.dir={home.parent / 'cache'}", "--name=run", "--no-wandb",
            f"--model={json.dumps(self.student)}", f"--teachers={json.dumps(team)}", f"--kd={json.dumps(self.kd)}",
            f"--data.train_size={self.steps * 32}", "--data.batch_size=32", "--training.max_epochs=2",
            "--training.log_every=1", "--training.compare_with_baseline=false",
            "--evaluation.report=false",
        ]  # fmt: skip


def cases() -> list[Case]:
    """All of them: weightings x logit losses, then feature losses, whose weightings take turns."""
    weightings = [name for name in kd_methods.names() if name != kd_methods.LABEL_ONLY]
    found = []
    for method in weightings:
        for loss in ONE_VIEW:
            resumed = loss == "kd" or method == "average"
            found.append(Case(f"{method} x logit loss {loss}", {"type": method, "loss": loss}, resumed=resumed))
    for number, loss in enumerate(feature_losses.names()):
        method = weightings[number % len(weightings)]
        entry = {"loss": loss, **FEATURES.get(loss, {})}
        kd = {"type": method, "features": [entry]}
        team = (0, 2) if feature_losses.loss_class(loss).needs_teacher_classifier else (0, 1)
        found.append(Case(f"{method} x feature loss {loss}", kd, CONVOLUTIONAL, resumed=True, team=team))
    return found


# ------------------------------------------------------------------------------------------------------------ runs


class Failed(Exception):
    """What is wrong with a case."""


def run(words: list[str], *, status: int = 0, script: Iterable[str] = ("train_kd.py",), processes: int = 1) -> None:
    """A script in `processes` processes, each of which has to end with `status`."""
    for found, text in run_ranks(processes, *script, *words, timeout=600, OMP_NUM_THREADS="1"):
        if found != status:
            raise Failed(f"exit status {found} in place of {status}: {reason(text)}")


def reason(text: str) -> str:
    """The message in a script's output, or its last words."""
    said = re.search(r"^train_kd\.py: (.*)", text, re.MULTILINE)
    return said[1] if said else " ".join(text.split()[-60:])


def result(home: Path) -> tuple:
    """Rows, weights and summary of the finished run in `home`."""
    [folder] = home.glob("runs/run-????????")
    return result_of(folder)


def require_sound(case: Case, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Failed unless the run ended, and its terms and weights are there."""
    if summary["status"] != "finished":
        raise Failed(f"status {summary['status']}")
    epochs = [row for row in rows if "train/loss_total" in row]
    if len(epochs) != 2:
        raise Failed(f"{len(epochs)} epochs")
    for row in epochs:
        require_terms(case, row)


def require_terms(case: Case, row: dict[str, Any]) -> None:
    """Failed unless an epoch's row has each term of the loss, and weights of the teachers that sum to 1."""
    for name in ("loss_distill", *(f"feature/{entry['loss']}" for entry in case.kd.get("features", []))):
        value = row.get(f"train/{name}")
        if value is None or not math.isfinite(value) or value == 0:
            raise Failed(f"epoch {row['epoch']}: train/{name} is {value}")
    total = sum(value for name, value in row.items() if re.fullmatch(r"train/teacher/\d/weight", name))
    if abs(total - 1) > 1e-4:
        raise Failed(f"epoch {row['epoch']}: weights of the teachers sum to {total}")


def require_close(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    """Failed unless both have the same training metrics, step by step, but for rounding."""
    for first, second in zip(one, two, strict=True):
        for name, value in first.items():
            if name.startswith("train") and abs(second[name] - value) > TOLERANCE * max(1, abs(value)):
                raise Failed(f"{name}: {value} in one process, {second[name]} in two")


def try_case(case: Case, home: Path, teachers: list[Path]) -> str:
    """Run it in all its ways; how it was run.  Raises Failed."""
    ways = ["whole"]
    run(case.words(home / "whole", teachers))
    whole = result(home / "whole")
    require_sound(case, whole[0], whole[2])
    if case.resumed:
        ways.append("resumed")
        words = case.words(home / "resumed", teachers)
        run(words, status=STOPPED, script=("tests/tools/stopped_after.py", str(STOP_AFTER)))
        run(words)
        if wrong := differences(whole, result(home / "resumed")):
            raise Failed(f"stopped and resumed, other {', '.join(wrong)}")
    own = next((changes for name, changes in IN_TWO.items() if case.name.endswith(name)), None)
    if own is not None:
        ways.append("two processes")
        kd = dict(case.kd)
        if "features" in kd:
            kd["features"] = [{**kd["features"][0], **own}]
        student = {**STUDENT, "args": {**STUDENT["args"], **dict.fromkeys(DROPOUT, 0.0)}}
        plain = replace(case, kd=kd, student=student, steps=LONG)
        for processes in (1, 2):
            run(plain.words(home / f"in-{processes}", teachers), processes=processes)
        require_close(result(home / "in-1")[0], result(home / "in-2")[0])
        words = plain.words(home / "in-2-resumed", teachers)
        run(words, status=STOPPED, script=("tests/tools/stopped_after.py", str(STOP_LONG_AFTER)), processes=2)
        run(words, processes=2)
        if wrong := differences(result(home / "in-2"), result(home / "in-2-resumed")):
            raise Failed(f"stopped and resumed in two processes, other {', '.join(wrong)}")
    return ", ".join(ways)


# -------------------------------------------------------------------------------------------------------- campaign


@dataclass
class Outcome:
    name: str
    ways: str
    wrong: str
    seconds: float

    def line(self) -> str:
        return f"{self.name:44} {self.ways:32} {self.seconds:5.1f} s  {self.wrong or 'as expected'}"


def campaign(
    chosen: list[Case], home: Path, teachers: list[Path], tell: Callable[[str], None] = print
) -> list[Outcome]:
    """Try each case, and tell how it went."""
    outcomes = []
    for number, case in enumerate(chosen):
        own, began, ways, wrong = home / f"case-{number}", time.monotonic(), "", ""
        try:
            ways = try_case(case, own, teachers)
        except Failed as failure:
            wrong = str(failure)
        outcomes.append(Outcome(case.name, ways, wrong, time.monotonic() - began))
        tell(outcomes[-1].line())
        shutil.rmtree(own, ignore_errors=True)
    return outcomes


def verdict(outcomes: list[Outcome]) -> str:
    right = [outcome for outcome in outcomes if not outcome.wrong]
    resumed, two = (sum(way in outcome.ways for outcome in right) for way in ("resumed", "two processes"))
    return (
        f"{len(right)} of {len(outcomes)} cases as expected; {resumed} of them stopped and resumed bit for bit, {two} "
        "in two processes as in one"
    )


def table(outcomes: list[Outcome]) -> str:
    """Markdown, a row for each case."""
    rows = [f"| {outcome.name} | {outcome.ways} | {outcome.wrong or 'as expected'} |" for outcome in outcomes]
    return "\n".join([verdict(outcomes), "", "| case | run | result |", "|---|---|---|", *rows, ""])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="cases with TEXT in their names, such as 'aekd x' or 'feature loss'"
    )
    parser.add_argument("--every", metavar="N", type=int, default=1, help="every Nth of those")
    parser.add_argument("--record", metavar="FILE", type=Path, help="write the table to FILE as Markdown")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args(arguments)
    chosen = [case for case in cases() if options.only in case.name][:: options.every]
    if not chosen:
        parser.error(f"--only {options.only}: no case has this in its name, such as {cases()[0].name!r}")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        home = Path(scratch)
        teachers = trained_teachers(home, TEACHERS)
        outcomes = campaign(chosen, home, teachers, lambda line: print(line, flush=True))
    print(verdict(outcomes))
    if options.record:
        options.record.write_text(table(outcomes))
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
