"""What a run prints: its cost beforehand, one line per epoch, and the tables of results; and its summary.json."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from kd_core.config import Config, import_words
from kd_core.data.dataset import Data
from kd_core.evaluation.metric_names import LABELS
from kd_core.evaluation.uncertainty import BEYOND_DOUBT, wilson
from kd_core.loop.timing import clock, peak_device_memory_mb, peak_host_memory_mb
from kd_core.models.network import Network
from kd_core.report import text_table
from kd_core.run.selection import AVERAGE
from kd_core.teachers.load import EXPOSED, Teacher, worst_of

LARGE = ("confusion", "reliability", "images")  # entries of an evaluation that only the report's own files hold
MISTAKES = 5  # number of the most confused pairs of classes that an evaluation prints
ONE_SEED = "one seed each, so another may differ: compare_kd.py compares several"


def epoch_line(row: dict[str, Any], max_epochs: int, left: float, best: bool) -> str:
    """One line about an epoch: its metrics, its time, and the time that the run still needs (`left`, seconds)."""
    validation = f"  val {row['val/accuracy']:.2%}" if "val/accuracy" in row else ""
    validation += f", average {row['val/ema_accuracy']:.2%}" if "val/ema_accuracy" in row else ""
    training = f"  train {row['train/accuracy']:.2%}" if "train/accuracy" in row else ""  # images may have no labels
    # with training.skip_nonfinite all steps of an epoch may have been skipped
    loss = f"{row['train/loss_total']:.3f}" if "train/loss_total" in row else "- (every step was skipped)"
    return (
        f"epoch {row['epoch']}/{max_epochs}  loss {loss}{training}"
        f"{validation}  lr {row['learning_rate']:.2g}  {row['perf/epoch_time']:.1f} s  left {clock(left)}"
        f"{'  best' if best and validation else ''}"
    )


def results(summary: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """Student alone, each teacher, their ensemble and the distilled student: accuracy, AUROC, parameters.

    Test accuracies are added if the test split was opened; networks that may have been trained on the validation images
    are marked.
    """
    rows = []
    if baseline is not None:
        rows.append(_row(f"{LABELS['alone']} ({baseline['student_model']})", baseline, baseline["parameters"]))
    for index, teacher in enumerate(summary.get("teachers", [])):
        rows.append(_row(f"teacher {index} ({teacher['name']})", teacher, teacher["parameters"]))
    if summary.get("ensemble"):
        sizes = [teacher["parameters"] for teacher in summary["teachers"]]
        rows.append(_row(LABELS["ensemble"], summary["ensemble"], None if None in sizes else sum(sizes)))
    kind = (
        f"distilled student ({summary['student_model']}, {summary['kd_type']})"
        if rows
        else f"student ({summary['student_model']})"
    )
    rows.append(_row(kind, summary, summary["parameters"]))
    header = ["", f"validation {LABELS['accuracy']}", f"validation {LABELS['auroc']}", f"test {LABELS['accuracy']}"]
    header.append(LABELS["parameters"])
    if all(row[3] == "-" for row in rows):
        header, rows = header[:3] + header[4:], [row[:3] + row[4:] for row in rows]
    lines = text_table.terminal(header, rows)
    if summary["val_images"]:
        accuracy, count = summary["val_accuracy"], summary["val_images"]
        error = 100 * math.sqrt(max(accuracy * (1 - accuracy), 1 / count) / count)
        lines += f"\n{count:,} validation images: one standard error of an accuracy here is about {error:.1f} points"
        lines += f"\nstudent's {LABELS['accuracy_interval']}: {interval(wilson(round(accuracy * count), count))}"
    validation = (summary.get("evaluation") or {}).get("val") or {}
    if "gain_images" in validation:  # older runs have none
        lines += f"\n{difference_to_alone(validation)}"
    for words in filter(None, (about_test_epochs(summary), about_weights(summary))):
        lines += f"\n{words}"
    return "\n".join([lines, *_exposed(summary)])


def over_test_epochs(rows: list[dict[str, float]]) -> dict[str, Any]:
    """What summary.json holds of the rows test_epochs/*; nothing without `evaluation.test_epochs`."""
    if not rows:
        return {}
    best = max(rows, key=lambda row: row["test_epochs/accuracy"])  # the first of several
    return {
        "max_test_epochs_accuracy": best["test_epochs/accuracy"],
        "max_test_epochs_epoch": best["epoch"],
        "last_test_epochs_accuracy": rows[-1]["test_epochs/accuracy"],
        "test_epochs": len(rows),
    }


def about_test_epochs(summary: dict[str, Any]) -> str | None:
    """One sentence about the test accuracies of all epochs; None for a run without `evaluation.test_epochs`."""
    if "test_epochs" not in summary:
        return None
    return (
        f"test accuracy, maximum over test epochs: {summary['max_test_epochs_accuracy']:.2%}, after epoch "
        f"{summary['max_test_epochs_epoch']} of {summary['test_epochs']} that were kept; after the last one "
        f"{summary['last_test_epochs_accuracy']:.2%}. The maximum is chosen on the test images, as in many papers' "
        "tables, so compare it with theirs alone"
    )


def about_weights(summary: dict[str, Any]) -> str | None:
    """One sentence: which weights the student has; None for a run without `training.ema`."""
    if "weights" not in summary:
        return None
    end = f"at the end of epoch {summary['best_epoch']}"
    if summary["weights"] != AVERAGE:
        return f"weights: those {end}, better on validation than their moving average (training.ema)"
    why = "better on validation, or as good" if summary["val_images"] else "there is no validation split to choose by"
    return f"weights: the moving average {end} (training.ema), not those of the last step: {why}"


MARKS = {"possibly": " *", "yes": " **"}  # of networks that `teachers.EXPOSED` speaks of


def _exposed(summary: dict[str, Any]) -> list[str]:
    """The meaning of the marks in the table of results, and the teachers that have seen the validation images."""
    teachers = summary.get("teachers") or []
    words = [teacher.get("saw_validation") for teacher in teachers]
    lines = [
        f"{mark.strip()} {EXPOSED[word]}, on which its accuracy may say nothing; set teachers[].trained_on if you know "
        "better"
        for word, mark in MARKS.items()
        if word in words
    ]
    for index, teacher in enumerate(teachers):
        if words[index] == "yes" and teacher.get("test_accuracy") is not None:
            lines.append(
                f"teacher {index} ({teacher['name']}) has seen the validation images: it is right on "
                f"{teacher['val_accuracy']:.2%} of them, and on {teacher['test_accuracy']:.2%} of the test images"
            )
    return lines


def interval(edges: Sequence[float]) -> str:
    """An interval (low, high) of shares in percent."""
    low, high = edges
    return f"{low:.2%} to {high:.2%}"


def difference_to_alone(figures: dict[str, Any]) -> str:
    """One sentence: the difference to the student trained without teachers, and how certain it is."""
    return (
        f"{LABELS['gain']}: {100 * figures['gain']:+.2f} points ({figures['gain_images']} of {figures['total']:,} "
        f"images), standard error {100 * figures['gain_error']:.2f} points: {figures['gain_verdict']} on these images "
        f"(McNemar's p {figures['gain_p']:.2g}); {ONE_SEED}"
    )


def _row(name: str, figures: dict[str, Any], parameters: int | None) -> list[str]:
    accuracy, area = figures.get("val_accuracy"), figures.get("val_auroc")
    test = figures.get("test_accuracy", figures.get("final_test_accuracy"))
    return [
        name + MARKS.get(figures.get("saw_validation") or "", ""),
        "-" if accuracy is None else f"{accuracy:.2%}",
        "-" if area is None else f"{area:.4f}",
        "-" if test is None else f"{test:.2%}",
        "-" if parameters is None else f"{parameters:,}",
    ]


def evaluation(title: str, figures: dict[str, Any]) -> str:
    """Tables of the metrics that `kd_core.evaluation.figures.evaluate` returns; `title` names student and images."""

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    scaled = figures["temperature_scaling"] or {}
    known = {
        "accuracy": ".2%", "macro_accuracy": ".2%", "top5": ".2%", "auroc": ".4f", "nll": ".4f", "brier": ".4f",
        "ece": ".4f", "ece_adaptive": ".4f",
    }  # fmt: skip
    rows = [["correct / total", f"{figures['correct']} / {figures['total']}", ""]]
    rows += [
        [LABELS[key], cell(figures[key], form), format(scaled[key], form) if key in scaled else ""]
        for key, form in known.items()
    ]
    rows.insert(2, [LABELS["accuracy_interval"], interval(figures["accuracy_interval"]), ""])
    if scaled:
        at = f"at {LABELS['temperature']} {scaled['temperature']:.3f}, from {scaled['fitted_on']}"
        blocks = [text_table.terminal([title, "", at], rows)]
        if not scaled["helped"]:
            blocks.append(no_help(figures))
    else:
        blocks = [text_table.terminal([title, ""], [row[:2] for row in rows])]
    if "teachers" in figures:
        forms = {"accuracy": ".2%", "nll": ".4f", "ece": ".4f", "agreement": ".2%", "kl": ".4f"}
        names = [f"teacher {index} ({row['name']})" for index, row in enumerate(figures["teachers"])]
        rows = [
            [name, *(cell(row[key], form) for key, form in forms.items())]
            for name, row in zip([*names, LABELS["ensemble"]], [*figures["teachers"], figures["ensemble"]], strict=True)
        ]
        blocks.append(text_table.terminal(["", *(LABELS[key] for key in forms)], rows))
        beside = figures["against_teachers"]
        rows = [
            [LABELS[key], cell(beside[key]["share"], ".2%"), cell(beside[key]["accuracy"], ".2%")]
            for key in ("all_agree", "disagree", "all_wrong")
        ]
        rows.append([LABELS["oracle"], cell(beside["oracle"], ".2%"), ""])
        blocks.append(text_table.terminal(["", "share of images", "student's accuracy there"], rows))
    if "alone" in figures:
        alone = figures["alone"]
        forms = {"accuracy": ".2%", "nll": ".4f", "ece": ".4f"}
        own = ", ".join(f"{LABELS[key]} {alone[key]:{form}}" for key, form in forms.items())
        blocks.append(f"{LABELS['alone']}: {own}\n{difference_to_alone(figures)}")
    if figures["most_confused"]:
        pairs = figures["most_confused"][:MISTAKES]
        rows = [
            [f"{row['label']} taken for {row['predicted']}", str(row["count"]), f"{row['share']:.1%}"] for row in pairs
        ]
        blocks.append(text_table.terminal(["most frequent mistakes", "images", "of the class"], rows))
    return "\n\n".join(blocks)


def no_help(figures: dict[str, Any]) -> str:
    """One sentence: how calibration changed by temperature scaling, for an evaluation that it did not help."""
    scaled = figures["temperature_scaling"]
    changes = [f"{LABELS[key]} {figures[key]:.4f} became {scaled[key]:.4f}" for key in ("nll", "ece")]
    return f"temperature scaling did not help on these images: {', '.join(changes)}"


def costs(figures: dict[str, Any]) -> str:
    """A table of the costs that `kd_core.evaluation.cost.measure` returns."""
    rows = [
        [LABELS["parameters"], f"{figures['parameters']:,}"],
        [LABELS["multiply_adds"], f"{figures['multiply_adds']:,}"],
        [LABELS["checkpoint_bytes"], f"{figures['checkpoint_bytes']:,} bytes"],
    ]
    for name, form in (("latency_ms", ".3g"), ("images_per_second", ",.0f")):
        for count, value in figures[name].items():
            shown = "too large" if value is None else format(value, form)
            rows.append([f"{LABELS[name]}, batch of {count}", shown])
    return text_table.terminal([f"cost on {figures['device']}, precision {figures['precision']}", ""], rows)


def summarize(
    config: Config,
    data: Data,
    student: Network,
    teachers: list[Teacher],
    measured: list[dict[str, float]],
    state: dict[str, Any],
    test: dict[str, float],
    evaluations: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """The content of summary.json.

    `measured`: metrics of each teacher and of their ensemble; `state`: the checkpoint's; `evaluations`: by split, what
    `evaluate` returned.
    """
    best, final = state["best"], state["metrics"]
    figures: list[dict[str, Any]] = [{"val_accuracy": row["accuracy"], "val_auroc": row["auroc"]} for row in measured]
    figures = figures or [{} for _ in [*teachers, "ensemble"]]
    exposed = [teacher.saw_validation for teacher in teachers]
    if (tested := evaluations.get("test", {})) and "teachers" in tested:
        for row, found in zip(figures, [*tested["teachers"], tested["ensemble"]], strict=True):
            row["test_accuracy"] = found["accuracy"]
        for place, word in enumerate(exposed):
            own = figures[place]
            # Test images that were cut from the training split prove nothing: the teacher may have seen them, too.
            if word == "possibly" and config.data.test_size is None and _far_above(
                own["val_accuracy"], len(data.val or ()), own["test_accuracy"], tested["total"]
            ):
                exposed[place] = "yes"
    if data.val is not None:
        for row, word in zip(figures, [*exposed, worst_of(exposed)], strict=True):
            row["saw_validation"] = word
    return {
        "student_model": student.architecture,
        "parameters": student.parameters,
        "kd_type": config.kd.type,
        "seed": config.training.seed,
        "epochs": state["epoch"],
        "processes": state["processes"],
        "budget": config.budget,
        "best_epoch": best["epoch"],
        "val_images": len(data.val) if data.val else 0,
        "val_accuracy": best.get("val/accuracy"),
        "val_auroc": best.get("val/auroc"),
        "best_val_accuracy": best.get("val/accuracy"),
        "final_val_accuracy": final.get("val/accuracy"),
        "final_test_accuracy": test.get("test/accuracy"),
        "teachers": [
            {"name": teacher.name, "parameters": teacher.parameters, **own}
            for teacher, own in zip(teachers, figures[:-1], strict=True)
        ],
        "ensemble": figures[-1] if teachers and figures[-1] else None,
        "evaluation": {split: short(figures) for split, figures in evaluations.items()},
        **({"weights": best.get("weights", "last")} if config.training.ema else {}),
    }


def _far_above(first: float, images: int, second: float, others: int) -> bool:
    """Whether an accuracy exceeds one on other images by more than chance: by `BEYOND_DOUBT` standard errors.

    The images are independent, so the variances p (1 - p) / n add up; each is at least that of one wrong image.
    """

    def variance(accuracy: float, count: int) -> float:
        return max(accuracy * (1 - accuracy), (1 - 1 / count) / count) / count

    return first - second > BEYOND_DOUBT * math.sqrt(variance(first, images) + variance(second, others))


def short(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The part of an evaluation that summary.json holds."""
    return {name: value for name, value in evaluation.items() if name not in (*LARGE, "cost")}


def next_steps(
    summary: dict[str, Any], *, page: Path | None = None, imports: Sequence[str] = (), student: Sequence[str] = ()
) -> str:
    """Where the results are, `page` included, and how to test the student; `imports`: the files of --import.

    `student`: the words that name it to evaluate_kd.py, if it is not that of a run in summary["run_folder"].
    """
    folder = shlex.quote(summary["run_folder"])
    words = ["python", "evaluate_kd.py", *import_words(imports), *(student or ["--checkpoint", summary["run_folder"]])]
    lines = [
        f"{'results in:' if student else 'run folder:'}  {folder}",
        *([f"look at it:  {shlex.quote(str(page))} (in a browser)"] if page else []),
        f"test it:     {shlex.join([*words, '--split', 'test'])}",
    ]
    return "\n".join(lines)


def cost(
    config: Config,
    data: Data,
    accelerator: Accelerator,
    teachers: list[str],
    to_train: int,
    *,
    parameters: int,
    loss: str,
    cache: str,
    steps_per_epoch: int,
    seconds: float,
    features: Sequence[str] = (),
) -> str:
    """What a run will cost, from its settings and `seconds` per step.

    `loss` is the loss in words, `cache` what is kept of the teachers, `to_train` the number of teachers that must be
    trained first, `features` the layers whose features are compared, each with the shape of one image's.
    """
    device, processes = accelerator.device, accelerator.num_processes
    training, batch = config.training, config.data.batch_size
    parts = f" in {training.accumulate} parts" if training.accumulate > 1 else ""
    # weights and two moments in `latest` and in its replacement, maybe an average; weights in `best` and in `student`
    latest = 3 + (training.ema is not None)
    kept = 2 + (training.max_epochs if config.evaluation.test_epochs else 0)
    disk = 4 * parameters * (2 * latest + kept) / 1e6
    total = seconds * steps_per_epoch * training.max_epochs
    memory = peak_device_memory_mb(device) or peak_host_memory_mb()
    validation = len(data.val) if data.val else 0
    uncounted = [f"{to_train} teacher(s) to be trained first"] * bool(to_train)
    uncounted += ["the comparison without teachers"] * training.compare_with_baseline + ["validation"]
    stored = {id(split.images): split.images.numel() for split in (data.train, data.shown)}
    pixels = sum(stored.values()) / 1e6
    return f"""check passed; nothing was trained or kept
  data      {len(data.train):,} training, {validation:,} validation images, {data.num_classes} classes
  student   {config.model.name}, {parameters:,} parameters
  teachers  {", ".join(teachers) or "none"}
  loss      {loss.removeprefix("loss = ")}{"".join(f"{chr(10)}  feature   {layer}" for layer in features)}
  cache     {cache}
  schedule  {training.optimizer}, {training.schedule} from {training.learning_rate:g}
  length    {training.max_epochs} epochs of {steps_per_epoch} steps of {batch} images{parts}, on {processes} process(es)
  budget    {config.budget}
  speed     {batch / seconds:,.0f} images per second, {seconds * 1000:.1f} ms per step
  time      about {clock(total)} to the end; not counted: {", ".join(uncounted)}
  memory    {memory:,.0f} MB at the peak, on {device}
  disk      about {disk:,.0f} MB for checkpoints and the export, {pixels:,.0f} MB for decoded training images"""
