"""The end of a run: the selected student's predictions per split, findings, cost, and the report page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from kd_core.config import Config
from kd_core.config.command_line import another_method
from kd_core.data.dataset import Data
from kd_core.errors import UserError
from kd_core.evaluation.cost import measure
from kd_core.evaluation.diagnosis import Finding, diagnose, findings_lines
from kd_core.evaluation.figures import Predictions
from kd_core.evaluation.predictions import Observer
from kd_core.models.build import load_export
from kd_core.models.network import Network, export_in, from_export
from kd_core.models.predict import Predictor, score
from kd_core.report import console
from kd_core.run.folder import RunFolder, read_metrics
from kd_core.run.tracking import environment
from kd_core.teachers.logits import TeacherLogits
from kd_methods import KDMethod


def observer(
    predict: Predictor, data: Data, student: Network, teachers: TeacherLogits, method: KDMethod, alone: Path | None
) -> Observer:
    """Evaluates the student beside its teachers and, from run folder `alone`, the same student trained without them."""
    observe = Observer(predict, data, student, teachers, method)
    if alone:
        export = export_in(alone)
        observe.alone = from_export(load_export(export), data, predict, f"the student alone: {export}")
    return observe


def observe_splits(
    observe: Observer, val_teachers: Tensor | None, say: Callable[[str], None]
) -> tuple[dict[str, Predictions], dict[str, float]]:
    """Predictions of the selected student and its teachers by split name, and the metrics test/*.

    `val_teachers` are the teachers' logits [K,n,C] on the validation split.  The test split is opened only with
    `evaluation.test_at_end`.  All processes call this together.
    """
    data = observe.data
    seen = {"val": observe("val", data.val, teacher_logits=val_teachers)} if data.val else {}
    test: dict[str, float] = {}
    if observe.predict.config.evaluation.test_at_end and (opened := open_test_split(observe, say)):
        seen["test"], test = opened
    return seen, test


def open_test_split(observe: Observer, say: Callable[[str], None]) -> tuple[Predictions, dict[str, float]] | None:
    """Predictions of the selected student and its teachers on the test split, and test/*; None without a test split.

    The only place where training reads the test split, after selection.
    """
    split = observe.data.test()
    if split is None:
        say("evaluation.test_at_end: the data have no test split, so nothing was tested (data.test_size makes one)")
        return None
    found, device = observe("test", split), observe.predict.accelerator.device
    taught = None if found.teachers is None else found.teachers.to(device)
    batch_size = observe.predict.config.data.batch_size
    logits, labels = found.student.to(device), found.labels.to(device)
    row = score(observe.method, logits, taught, labels, batch_size=batch_size, progress=1.0)
    say(f"test accuracy {row['accuracy']:.2%} on {len(labels)} images")
    return found, {f"test/{name}": value for name, value in row.items()}


def sample(observe: Observer, say: Callable[[str], None]) -> Predictions | None:
    """Predictions on some training images; None, with a printed reason, if a teacher is no longer available."""
    try:
        return observe.sample()
    except UserError as error:  # only the report lacks them; the finished run is kept
        say(f"teachers are not evaluated on training images: {error}")
        return None


def inspect(
    config: Config,
    student: Network,
    folder: RunFolder,
    val: Predictions | None,
    train: Predictions | None,
    steps_per_epoch: int,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What summary.json holds of a run besides its metrics: `environment`, `findings` and `cost`.

    `val` and `train`: predictions on the validation split and on some training images.  Main process only.
    """
    findings = diagnose(
        config,
        rows=read_metrics(folder.metrics_file),
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
    evaluations: dict[str, dict[str, Any]],
    seen: dict[str, Predictions],
) -> None:
    """Write the run's report from its files and from its predictions by split."""
    from kd_core.report.run_page import write_report  # not above: matplotlib takes long to import

    write_report(
        folder.path,
        summary=summary,
        settings=config.to_yaml(),
        environment=summary["environment"],
        rows=read_metrics(folder.metrics_file),
        evaluations=evaluations,
        predictions=seen.get("test", seen.get("val")),
    )


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
