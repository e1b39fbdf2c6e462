"""Synthetic finished runs, for tests of comparisons."""

import itertools
from pathlib import Path

import kd_methods
from kd_core.comparison.compare import compare
from kd_core.comparison.runs import Found, Run
from kd_core.config import Layer, identity_of, resolve
from kd_core.files import write_json

LABEL_ONLY = kd_methods.LABEL_ONLY
TEACHER = {"model": "cifar_resnet56", "weights": "teacher.pth"}
A, B, C = [name for name in kd_methods.names() if name != LABEL_ONLY][:3]
VALUES = [0.713, 0.702, 0.725, 0.709, 0.731]
OTHERS = [0.701, 0.699, 0.708, 0.712, 0.715]


def make(method=A, seed=0, accuracy=0.5, images="f" * 64, created=0.0, summary=None, rows=(), **sections) -> Run:
    """A synthetic finished run; `sections` change its settings."""
    values = {
        "kd": {"type": method},
        "model": {"name": "cifar_resnet20"},
        "teachers": [] if method == LABEL_ONLY else [TEACHER],
        "training": {"seed": seed, **sections.pop("training", {})},
        **sections,
    }
    if isinstance(values["kd"], dict):
        values["kd"] = {"type": method, **values["kd"]}
    config = resolve([Layer("test", values)], in_sweep=False).config
    number = next(COUNTER)
    return Run(
        name=f"runs/{config.experiment}-{number:08d}",
        run_id=f"{number:08d}",
        config=config,
        identity=identity_of(config, images),
        summary={"best_val_accuracy": accuracy, "parameters": 1000, "best_epoch": 1, **(summary or {})},
        rows=list(rows),
        created=created,
    )


COUNTER = itertools.count()


def several(method=A, values=VALUES, first=0, **more) -> list[Run]:
    return [make(method, seed, value, **more) for seed, value in enumerate(values, first)]


def store(run: Run, folder: Path) -> Path:
    """Write a run as a run folder."""
    folder.mkdir()
    (folder / "config.yaml").write_text(run.config.to_yaml())
    write_json(folder / "identity.json", run.identity)
    write_json(folder / "summary.json", {**run.summary, "run_id": run.run_id, "status": "finished"})
    return folder


EVIL = "=1+1|<script>alert(1)</script>\x1b[31m_100%_$x^2$\\input{a}&#~\nnew `line`"


def evil() -> dict:
    summary = {"teachers": [{"name": EVIL, "val_accuracy": 0.7}]}
    runs = several(A, summary=summary) + several(B, OTHERS, summary=summary) + several(LABEL_ONLY)
    return compare(Found(runs, [(EVIL, EVIL)]))
