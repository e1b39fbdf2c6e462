"""The report of a run: plots, metrics and tables in one page, report/index.html in the run folder.

Every number on the page is in summary.json, under the key that its element names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from kd_core import metrics
from kd_core.config.privacy import redacted
from kd_core.evaluation.figures import OPTIONAL, Predictions
from kd_core.evaluation.metric_names import LABELS
from kd_core.files import read_object, replacing_folder, write_json, write_text
from kd_core.report import html, plots
from kd_core.report.console import ONE_SEED, about_test_epochs, about_weights, next_steps, short
from kd_core.run.folder import RunFolder, read_metrics
from kd_core.run.tracking import MISTAKES
from kd_core.teachers.load import EXPOSED

SPLITS = {"test": "Test split", "val": "Validation split", "train": "Training split"}  # in this order
FILES = ("student", "summary.json", "metrics.jsonl", "config.yaml")  # of a run folder, which the page explains
SHOWN, BESIDE = 16, 4  # images, and teachers of which the guesses fit beside the student's


@dataclass
class Plot:
    """A figure, its content in words for those who cannot see it, and how to read it."""

    figure: Figure
    alt: str
    caption: str


def write_report(
    folder: Path,
    *,
    summary: dict[str, Any],
    settings: str,
    environment: dict[str, Any],
    rows: list[dict[str, Any]],
    evaluations: dict[str, dict[str, Any]],
    predictions: Predictions | None = None,
    imports: Sequence[str] = (),
    source: Sequence[str] = (),
) -> Path:
    """Replace folder/report, all of it or nothing: plots, evaluation-SPLIT.json and index.html; returns its path.

    Args:
        folder: the run folder.
        summary: what summary.json holds, with `evaluation`, `cost` and `findings` where there are such.
        settings: the resolved settings as YAML.
        environment: versions and hardware, from `tracking.environment`.
        rows: of metrics.jsonl.
        evaluations: what `figures.evaluate` returned, by split.
        predictions: of the split whose mistakes and weights of teachers are shown.
        imports: the files of --import.
        source: the words that name the student to evaluate_kd.py, if it is not that of a run in `folder`.

    A part without values is left out.
    """
    summary, environment, evaluations = redacted(summary), redacted(environment), redacted(evaluations)
    splits = {split: title for split, title in SPLITS.items() if split in evaluations}
    drawn = draw(summary, rows, {split: evaluations[split] for split in splits}, predictions)
    with replacing_folder(folder / "report") as fresh:
        for name, plot in drawn.items():
            plots.save(plot.figure, fresh / f"{name}.png")
        for split, figures in evaluations.items():
            write_json(fresh / f"evaluation-{split}.json", figures)
        text = html.render(
            "report.html",
            name=folder.resolve().name,
            summary=summary,
            settings=redacted(settings),
            environment=dict(_flat(environment)),
            splits=splits,
            exposed=EXPOSED,
            plots={
                name: {
                    "uri": html.data_uri(fresh / f"{name}.png"),
                    "alt": plot.alt,
                    "caption": plot.caption,
                    "images": name.startswith(MISTAKES),
                }
                for name, plot in drawn.items()
            },
            one_seed=ONE_SEED,
            weights=about_weights(summary),
            test_epochs=about_test_epochs(summary),
            files={name for name in FILES if (folder / name).exists()},
            steps=redacted(next_steps({**summary, "run_folder": str(folder)}, imports=imports, student=source)),
        )
        write_text(fresh / "index.html", text)
    return folder / "report" / "index.html"


def renew_report(
    home: Path,
    run: RunFolder | None,
    measured: dict[str, Any],
    predictions: Predictions,
    *,
    student: dict[str, Any],
    settings: str,
    imports: Sequence[str] = (),
    source: Sequence[str] = (),
) -> Path:
    """Write the report in folder `home` with a new evaluation of one split; returns the path of the page.

    Args:
        run: the run folder, whose report and summary keep what else they hold; None: the student came without one.
        measured: what `figures.evaluate` returned for the split of `predictions`, with `cost` if it was measured.
        student: keys of summary.json that describe a student without a run folder, and `num_teachers`.
        settings: the resolved settings as YAML.
        imports: the files of --import.
        source: the words that name a student without a run folder to evaluate_kd.py.
    """
    split = predictions.split
    evaluations = {split: measured}
    new: dict[str, Any] = {"cost": measured["cost"]} if "cost" in measured else {}
    if run:
        for name in SPLITS:
            file = run.path / "report" / f"evaluation-{name}.json"
            before = read_object(file) if file.is_file() else {}
            if before.keys() >= measured.keys() - {"cost", *OPTIONAL}:
                now = evaluations.get(name, {})
                images = {each["images"] for each in (before, now) if "images" in each}
                evaluations[name] = {**before, **now} if len(images) < 2 else now  # figures of other images go
        known = run.summary().get("evaluation")
        known = known if isinstance(known, dict) else {}
        new["evaluation"] = known | {name: short(each) for name, each in evaluations.items()}
        summary, rows = run.write_summary(**new), read_metrics(run.metrics_file)
    else:
        summary, rows = {**student, "evaluation": {split: short(measured)}, **new}, []
    return write_report(
        home,
        summary=summary,
        settings=settings,
        environment=summary.get("environment", {}),
        rows=rows,
        evaluations=evaluations,
        predictions=predictions,
        imports=imports,
        source=() if run else source,
    )


def draw(
    summary: dict[str, Any],
    rows: list[dict[str, Any]],
    evaluations: dict[str, dict[str, Any]],
    predictions: Predictions | None,
) -> dict[str, Plot]:
    """All plots for which there are values, by file name without the extension."""
    teachers = [teacher["name"] for teacher in summary.get("teachers") or []]
    drawn = _over_epochs(rows, teachers)
    for split, figures in evaluations.items():
        own = predictions if predictions and predictions.split == split else None
        drawn |= {f"{name}-{split}": plot for name, plot in _of_split(figures, own).items()}
    return drawn


def _over_epochs(rows: list[dict[str, Any]], teachers: list[str]) -> dict[str, Plot]:
    epochs = [row for row in rows if "train/loss_total" in row]
    if not epochs:
        return {}
    last = epochs[-1]
    reached = [f"training loss {html.shown(last['train/loss_total'], 'figure')}"]
    for name, words in (("train/accuracy", "training accuracy"), ("val/accuracy", "validation accuracy")):
        if name in last:
            reached.append(f"{words} {html.shown(last[name], 'share')}")
    drawn = {
        "training-curves": Plot(
            plots.training_curves(rows),
            f"Three line charts over {len(epochs)} epochs: loss, accuracy, learning rate. "
            f"In the last epoch: {', '.join(reached)}.",
            "Training metrics are means over augmented images in training mode, so they may be below those of "
            "validation. The star marks the epoch whose student is the result.",
        )
    }
    if panels := plots.method_panels(rows, teachers):
        ends = [
            f"{title}: " + ", ".join(f"{label} {html.shown(last.get(name), 'figure')}" for name, label in own.items())
            for title, own in panels.items()
        ]
        drawn["method"] = Plot(
            plots.method_metrics(rows, teachers),
            f"Line charts over {len(epochs)} epochs of what the method measured. In the last epoch: {'; '.join(ends)}.",
            "What the method itself measured, under the names of metrics.jsonl: what it minimizes, how it mixes labels "
            "and teachers, and how it weights each teacher.",
        )
    return drawn


def _of_split(figures: dict[str, Any], predictions: Predictions | None) -> dict[str, Plot]:
    scaling = figures.get("temperature_scaling")
    after, effect = None, ""
    if scaling:
        effect = (
            f" At {LABELS['temperature']} {html.shown(scaling['temperature'], 'figure')}: "
            f"{html.shown(scaling['ece'], 'share')}."
        )
        if predictions:
            temperature = scaling["temperature"]
            bins = metrics.reliability_of(predictions.student, predictions.labels, temperature)
            after = temperature, bins, scaling["ece"]
    drawn = {
        "reliability": Plot(
            plots.reliability(figures["reliability"], figures["ece"], after),
            f"Reliability diagram: accuracy against confidence in {len(figures['reliability']['count'])} bins, and a "
            f"histogram of the confidence. {_capital(LABELS['ece'])}: {html.shown(figures['ece'], 'share')}.{effect}",
            "Bars on the diagonal mean that 70% of the predictions made with 70% confidence are right. A hatched gap "
            "above a bar is overconfidence, one within it underconfidence.",
        )
    }
    classes = [row["name"] for row in figures["per_class"]]
    if "confusion" in figures:
        worst = "; ".join(
            f"{row['label']} taken for {row['predicted']} {row['count']} times" for row in figures["most_confused"][:3]
        )
        grouped = predictions.superclasses if predictions else None
        drawn["confusion"] = Plot(
            plots.confusion(
                figures["confusion"], classes, grouped, predictions.superclass_names if predictions else None
            ),
            f"Confusion matrix of {len(classes)} classes; accuracy {html.shown(figures['accuracy'], 'share')}. "
            f"Most frequent mistakes: {worst or 'none'}.",
            "Rows are true classes, columns predictions; the diagonal is right. The root scale makes rare mistakes "
            "visible.",
        )
    gains = [(row["name"], row["gain"]) for row in figures["per_class"] if row.get("gain") is not None]
    if gains:
        known = [row["gain_error"] for row in figures["per_class"] if row.get("gain_error") is not None]
        errors = known if len(known) == len(gains) else None  # older evaluations have none
        best, worst_class = max(gains, key=lambda pair: pair[1]), min(gains, key=lambda pair: pair[1])
        drawn["gains"] = Plot(
            plots.gains([name for name, _ in gains], [gain for _, gain in gains], errors),
            f"Bars of each class's {LABELS['gain']}. Highest: {best[0]}, "
            f"{html.shown(best[1], 'points')}; lowest: {worst_class[0]}, {html.shown(worst_class[1], 'points')}.",
            "Each class's accuracy minus that of the same student trained alone. With few images most of this is "
            "chance: the table of classes has each standard error.",
        )
    if predictions is not None:
        drawn |= _of_images(predictions)
    return drawn


def _of_images(predictions: Predictions) -> dict[str, Plot]:
    drawn, labels, teachers = {}, predictions.labels, predictions.teachers
    names = predictions.teacher_names
    if predictions.weights is not None and teachers is not None and len(teachers) > 1:
        weights, right = predictions.weights.float(), metrics.predictions(teachers) == labels
        means = "; ".join(
            f"{name} {_mean(weights[i][right[i]])} where right, {_mean(weights[i][~right[i]])} where wrong"
            for i, name in enumerate(names)
        )
        drawn["teacher-weights"] = Plot(
            plots.teacher_weights(weights, right, names),
            f"Histograms of the weight of each teacher, for images that it has right and wrong. Means: {means}.",
            "A good weighting gives a teacher more weight where it is right. The dotted line is the weight of each "
            "teacher if all have the same.",
        )
    if predictions.pixels:
        confidence, _ = metrics.most_probable(predictions.student)
        predicted = metrics.predictions(predictions.student)
        wrong = (predicted != labels).nonzero().flatten()
        chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN]
        if len(chosen):
            first = int(chosen[0])
            true, taken = (predictions.class_names[int(classes[first])] for classes in (labels, predicted))
            first_teachers = [] if teachers is None else list(teachers[:BESIDE, chosen].float().softmax(-1))
            drawn[MISTAKES] = Plot(
                plots.mistakes(
                    predictions.pixels(chosen),
                    labels[chosen],
                    [predictions.student[chosen].float().softmax(1), *first_teachers],
                    ["student", *names[:BESIDE]],
                    predictions.class_names,
                ),
                f"{len(chosen)} of {len(wrong)} misclassified images with the three most probable classes of each "
                f"network. The first is of class {true}, taken for {taken} with "
                f"{html.shown(float(confidence[first]), 'share')}.",
                "The student's most confident mistakes, beside the predictions of its (first) teachers. Ticks and "
                "green bars mark the true class.",
            )
    return drawn


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _mean(values: Tensor) -> str:
    return html.shown(float(values.mean()) if len(values) else None, "figure")


def _flat(values: dict[str, Any], prefix: str = "") -> Any:
    """(dotted key, value) of each leaf."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else value
