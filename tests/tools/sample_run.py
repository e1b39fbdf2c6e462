"""A synthetic run with any number of classes and teachers, for tests of plots, pages and what W&B shows of them."""

import math
from pathlib import Path
from typing import Any

import torch

from kd_core.evaluation.figures import Predictions, evaluate
from kd_core.report.run_page import write_report

# Hostile class names, and names in other scripts.
HOSTILE = ["<script>document.title='owned'</script>", "\"><img src=x onerror=document.title='owned'>", "a & b",
           "$\\frac{$", "日本語", "l\u202eor", "bell\x07\x1b[31m", "x" * 300, "two\nlines", "{{ 7 * 7 }}"]  # fmt: skip


def predictions(
    classes: int = 10, count: int = 400, teachers: int = 3, names: list[str] | None = None, **more: Any
) -> Predictions:
    """Logits of networks that are right about two thirds of the time, and weights that follow the teachers."""
    generator = torch.Generator().manual_seed(0)
    images = torch.arange(count * 192).reshape(-1, 8, 8, 3).to(torch.uint8)
    more = {"pixels": images.__getitem__, **more}
    labels = torch.randint(classes, (count,), generator=generator)

    def logits(skill: float) -> torch.Tensor:
        noise = torch.randn(count, classes, generator=generator)
        return 2 * (noise + skill * torch.nn.functional.one_hot(labels, classes))

    student, alone = logits(2.2), logits(2.0)
    if not teachers:
        return Predictions("val", labels, student, names or [f"class {i}" for i in range(classes)], **more)
    taught = torch.stack([logits(2.0 + 0.3 * i) for i in range(teachers)])
    weights = taught.softmax(-1)[:, torch.arange(count), labels].softmax(0)
    return Predictions(
        "val",
        labels,
        student,
        names or [f"class {i}" for i in range(classes)],
        taught,
        [f"teacher_{i}" for i in range(teachers)],
        alone,
        weights,
        **more,
    )


def superclasses(classes: int) -> dict[str, Any]:
    """Superclasses of every fifth class, so that their order differs from that of the classes."""
    parents = math.ceil(classes / 5)
    return {
        "superclasses": [i % parents for i in range(classes)],
        "superclass_names": [f"superclass {i}" for i in range(parents)],
    }


def rows(epochs: int = 12, teachers: int = 3) -> list[dict[str, Any]]:
    """metrics.jsonl of a run; the best epoch is the last but one, and another one has the same accuracy."""
    found: list[dict[str, Any]] = [{"epoch": 0, "teacher/0/val_accuracy": 0.8}]
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        found.append({"train_step/step": 10 * epoch, "train_step/loss_total": 3 - done})
        label, distill = 2.5 * math.exp(-2 * done), 6 * math.exp(-2 * done)
        found.append(
            {
                "epoch": epoch,
                "learning_rate": 0.05 * (1 + math.cos(math.pi * done)),
                "train/loss_total": label + distill,
                "train/accuracy": 0.7 * done,
                "train/loss_label": label,
                "train/loss_hard": label,
                "train/loss_distill": distill,
                "train/kd_weight": 0.5 + 0.2 * done,
                "train/gate": 0.6 + 0.3 * done,
                "train/gradient_norm": 0.5 - 0.3 * done,
                "train/step_time": 0.1,
                "train/unheard_of": 3 + done,
                "val/accuracy": 0.6 * min(epoch, epochs - 1) / epochs,
                "val/loss_ce": 3 - done,
                **{f"train/teacher/{i}/weight": 1 / teachers for i in range(teachers)},
                **{f"train/teacher_{i}_usage_fraction": 1 / teachers for i in range(teachers)},
            }
        )
    return found


def summary(made: Predictions, evaluations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    kept = {
        split: {name: value for name, value in figures.items() if name not in ("confusion", "reliability")}
        for split, figures in evaluations.items()
    }
    return {
        "run_id": "ab12cd34", "status": "finished", "student_model": "cifar_resnet8", "kd_type": "dynamic",
        "parameters": 78042, "seed": 3, "epochs": 12, "best_epoch": 11, "evaluation": kept,
        "teachers": [{"name": name, "parameters": 1000 + i or None} for i, name in enumerate(made.teacher_names)],
        "cost": {
            "parameters": 78042, "multiply_adds": 12480000, "checkpoint_bytes": 321987, "device": "a <CPU>",
            "precision": "no", "latency_ms": {"1": 1.2345, "256": 81.25},
            "images_per_second": {"1": 810.04, "256": None},
        },
        "findings": [
            {"name": "near uniform", "message": "weights <hardly> differ", "key": "kd.temperature", "value": 4.0,
             "advice": "lower it"}
        ],
    }  # fmt: skip


def report(folder: Path, made: Predictions | None = None, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Write the report of a synthetic run; returns the page's path and its arguments, updated by `changes`."""
    made = made or predictions()
    evaluations = {"val": evaluate(made, made)}
    arguments: dict[str, Any] = {
        "summary": summary(made, evaluations),
        "settings": "kd:\n  type: dynamic  # <b>\n",
        "environment": {"python": "3.11", "packages": {"torch": "2.14"}, "gpus": ["a", "b"], "cuda": None},
        "rows": rows(teachers=max(1, len(made.teacher_names))),
        "evaluations": evaluations,
        "predictions": made,
        **changes,
    }
    folder.mkdir(exist_ok=True)
    return write_report(folder, **arguments), arguments
