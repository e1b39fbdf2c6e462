"""parallel_coordinates.png and importance.png beside the storage, as Optuna draws them."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from kd_core.errors import first_line
from kd_core.files import write_bytes
from kd_sweeps.display import Display
from kd_sweeps.study import SharedStudy
from kd_sweeps.sweep_file import Parameter, Sweep, is_int

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CHOICES = 12  # values of a parameter that get a tick each


def plot(shared: SharedStudy, display: Display) -> None:
    """Write both plots; a line says why one is left out."""
    sweep, folder = shared.sweep, shared.storage.parent
    trials = [trial for trial in shared.trials() if trial.state == TrialState.COMPLETE]
    if len(trials) < 2 or not sweep.varied:
        display.say("no plots: they need two finished trials and a parameter that varies")
        return
    write_bytes(folder / "parallel_coordinates.png", draw_parallel_coordinates(sweep, trials))
    try:
        names = list(importances(shared.study, trials, sweep))
        image = draw_importance(shared.study, sweep, names, len(trials))
    except Exception as error:  # Optuna refuses for many reasons, and a plot is not worth a failed sweep
        display.say(f"no importance.png: {first_line(error)}")
        return
    write_bytes(folder / "importance.png", image)


def importances(study: optuna.Study, trials: Sequence[FrozenTrial], sweep: Sweep) -> dict[str, float]:
    """The share of each parameter that took several values, largest first; ValueError if the trials do not show it.

    Optuna returns equal shares where it finds no difference, and a share for a parameter that never changed, so both
    are checked here.
    """
    finite = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    values = [trial.value for trial in finite if trial.value is not None]
    taken = [trial.user_attrs["values"] for trial in finite]
    several = [p.name for p in sweep.varied if len({json.dumps(own.get(p.name)) for own in taken}) > 1]
    needed = len(several) + 2  # with fewer trials than unknowns any parameter explains the differences
    if not several:
        raise ValueError("no parameter took more than one value in the finished trials")
    if len(several) == 1:
        raise ValueError(f"only {several[0]} took more than one value, so its share is 1")
    if len(finite) < needed:
        raise ValueError(f"{len(finite)} finished trials are too few for {len(several)} parameters: needs {needed}")
    if same(values):
        raise ValueError(f"{sweep.metric} is the same in all {len(finite)} trials")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator(), params=several, normalize=False
        )
    total = sum(found.values())
    if not (math.isfinite(total) and total > 0):
        raise ValueError(f"the trials with the best {sweep.metric} took the same values as all others")
    return {name: share / total for name, share in found.items()}


def evaluator() -> optuna.importance.BaseImportanceEvaluator:
    """Importance for being in the better half of the trials.

    By default Optuna asks what sets the best tenth apart, which two or three trials decide where there are 20 or 30.
    """
    return optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)


def draw_importance(study: optuna.Study, sweep: Sweep, names: list[str], trials: int) -> bytes:
    """Bars, the most important parameter on top; `trials` is how many were compared."""
    with drawing():
        axes = optuna.visualization.matplotlib.plot_param_importances(
            study, evaluator=evaluator(), params=names, target_name=shown(sweep.metric)
        )
        axes.set_title(f"{shown(sweep.path.stem)}: what sets the better half of {trials} trials apart", loc="left")
        axes.set_yticks(axes.get_yticks(), [shown(label.get_text()) for label in axes.get_yticklabels()])
        return png(axes, width=8, height=1.6 + 0.4 * len(names))


def draw_parallel_coordinates(sweep: Sweep, trials: Sequence[FrozenTrial]) -> bytes:
    """One line per trial through its values; the color shows the metric.

    The worst tenth shares one color, so that a single diverged trial does not make all others look alike.
    """
    ordered = sorted(trials, key=lambda trial: trial.user_attrs["best"], reverse=not sweep.maximize)
    results = [float(trial.user_attrs["best"]) for trial in ordered]  # worst first: the best is drawn on top
    worst, best = results[len(results) // 10], results[-1]
    if same(results):  # rounding errors are not a scale
        results = [best] * len(results)
    study = optuna.create_study(direction="maximize" if sweep.maximize else "minimize")
    columns = {p.name: column(p, [trial.user_attrs["values"].get(p.name) for trial in ordered]) for p in sweep.varied}
    distributions = {name: distribution for name, (distribution, _) in columns.items()}
    for row, result in enumerate(results):
        params = {name: values[row] for name, (_, values) in columns.items()}
        study.add_trial(optuna.create_trial(value=result, params=params, distributions=distributions))
    names = [sweep.metric, *sorted(columns)]
    width = max(8.0, 1.5 * len(names))
    with drawing():
        axes = optuna.visualization.matplotlib.plot_parallel_coordinate(study, target_name=shown(sweep.metric))
        axes.set_title(f"{shown(sweep.path.stem)}: {len(trials)} trials", y=1.05)
        axes.set_xticks(range(len(names)), [shown(name) for name in names], rotation=330, ha="left")
        [lines] = axes.collections
        lines.set(cmap="viridis" if sweep.maximize else "viridis_r", clim=(min(worst, best), max(worst, best)))
        _, bar, *scales = axes.figure.axes
        place = bar.get_position()
        bar.set_position((place.x0 + 0.6 / width, place.y0, place.width, place.height))  # room for the last labels
        for label in (label for scale in scales for label in scale.get_yticklabels()):
            label.set(fontsize=8, bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5})
        return png(axes, width, height=4.5)


def column(parameter: Parameter, values: list[Any]) -> tuple[BaseDistribution, list[Any]]:
    """The axis of a parameter, and the values on it: those that the trials got, not those that Optuna has drawn.

    Numbers from a range keep their scale; a list of choices has its values at equal distances.
    """
    numbers = all(is_int(value) or isinstance(value, float) for value in values)
    listed = "values" in parameter.spec
    if numbers and not (listed and len(set(values)) <= MAX_CHOICES):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=parameter.logarithmic and low > 0), values
    if not numbers:
        labels = {str(value): shown(str(value), 16) for value in values}
        if len(set(labels.values())) < len(labels):  # their ends do not tell them apart
            labels = {text: shown(text, len(text)) for text in labels}
        values = [labels[str(value)] for value in values]
    return CategoricalDistribution(list(dict.fromkeys(values))), values


@contextmanager
def drawing() -> Iterator[None]:
    """Draw without a display; Matplotlib's settings are restored and its new figures closed."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    before = pyplot.get_fignums()
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # experimental, glyphs that the font lacks, axes of one value
        try:
            yield
        finally:
            for number in set(pyplot.get_fignums()) - set(before):
                pyplot.close(number)


def png(axes: Axes, width: float, height: float) -> bytes:
    """The figure of `axes` at `width` x `height` inches, 100 dots per inch, with room for all labels."""
    figure = axes.get_figure(root=True)
    assert figure
    figure.set_size_inches(width, height)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return buffer.getvalue()


def shown(text: str, length: int = 28) -> str:
    """`text` as a label: its end if it is long, and never read as a formula."""
    return (text if len(text) <= length else "…" + text[-(length - 1) :]).replace("$", r"\$")


def same(values: Sequence[float]) -> bool:
    """Whether values are equal but for rounding."""
    return max(values) - min(values) <= 1e-9 * max(map(abs, values))
