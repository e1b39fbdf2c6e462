"""The end of a run: findings, cost, the report page, and what is printed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.nn.modules.batchnorm import _BatchNorm

from kd_core.config import Config, import_words, read_yaml
from kd_core.config.command_line import another_method
from kd_core.evaluation.cost import measure
from kd_core.evaluation.diagnosis import Finding, diagnose, findings_lines
from kd_core.evaluation.figures import Predictions
from kd_core.models.network import Network
from kd_core.report import console
from kd_core.run.folder import RunFolder
from kd_core.run.tracking import environment


def inspect(
    config: Config,
    student: Network,
    folder: RunFolder,
    rows: list[dict[str, Any]],
    val: Predictions | None,
    train: Predictions | None,
    steps_per_epoch: int,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What summary.json holds of a run besides its metrics: `environment`, `findings` and `cost`.

    `rows`: of metrics.jsonl.  `val` and `train`: predictions on the validation split and on some training images.
    Main process only.
    """
    findings = diagnose(
        config,
        rows=rows,
        train=train,
        val=val,
        steps_per_epoch=steps_per_epoch,
        processes=accelerator.num_processes,
        batch_norm=any(isinstance(module, _BatchNorm) for module in student.model.modules()),
    )
    return {
        "environment": environment(),
        "findings": [asdict(finding) for finding in findings],
        "cost": measure(
            student.model,
            student.preprocess.size,
            accelerator.device,
            checkpoint=folder.student,
            precision=accelerator.mixed_precision,
            channels_last=config.training.channels_last,
        ),
    }


def write_page(
    config: Config,
    folder: RunFolder,
    summary: dict[str, Any],
    rows: list[dict[str, Any]],
    evaluations: dict[str, dict[str, Any]],
    seen: dict[str, Predictions],
) -> None:
    """Write the run's report, from the rows of metrics.jsonl and from its predictions by split."""
    from kd_core.report.run_page import write_report  # not above: matplotlib takes long to import

    write_report(
        folder.path,
        summary=summary,
        settings=config.to_yaml(),
        environment=summary["environment"],
        rows=rows,
        evaluations=evaluations,
        predictions=seen.get("test", seen.get("val")),
        imports=config.imports,
    )


def unlike_now(config: Config, folder: Path, summary: dict[str, Any], processes: int) -> Iterator[str]:
    """How a run that has finished before, in `folder`, differs from what the same command asks for now, with so many
    processes: in what is no part of its identity."""
    there = summary.get("processes")  # earlier versions did not record it
    if there not in (None, processes):
        yield f"  trained by {there} process(es), this is {processes}: BatchNorm and losses of a batch depend on it"
    asked = read_yaml(folder / "config.yaml").get("evaluation", {}).get("test_at_end")
    if config.evaluation.test_at_end and not asked and "test" not in (summary.get("evaluation") or {}):
        words = ["evaluate_kd.py", *import_words(config.imports), "--checkpoint", str(folder), "--split", "test"]
        yield f"  it was finished without evaluation.test_at_end; to test it: {shlex.join(['python', *words])}"


def closing_words(
    config: Config,
    summary: dict[str, Any],
    baseline: dict[str, Any] | None,
    *,
    arguments: list[str],
    has_config: bool,
) -> Iterator[str]:
    """What is printed after a run: the table of results, where they are, what to do next, and the findings.

    `baseline`: the summary of the same student without teachers.  `arguments`: the command line; `has_config`:
    whether it names a settings file.
    """
    yield f"\n{console.results(summary, baseline)}\n"
    page = Path(summary["run_folder"]) / "report" / "index.html"
    yield console.next_steps(summary, page=page if page.is_file() else None, imports=config.imports)
    if not has_config and config.teachers:
        yield f"another way: {another_method('train_kd.py', arguments, config.kd.type)}"
    if not has_config and config.data.source == "digits":
        yield "real data:   python train_kd.py --config configs/cifar32/dynamic-rdv-gamma2-threshold0.3.yaml --check"
    if findings := [Finding(**finding) for finding in summary.get("findings") or []]:
        yield f"\n{findings_lines(findings)}"
