"""Plots show the values that they are given, are legible, and survive any name."""

import matplotlib
import numpy as np
import pytest
import sample_run
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from kd_core import metrics
from kd_core.evaluation.figures import Predictions, evaluate
from kd_core.report import plots, run_page

ALL = {"training-curves", "method", "reliability", "confusion", "gains", "teacher-weights", "mistakes"}


def drawn(made: Predictions) -> dict[str, Figure]:
    """All plots of a run, by name."""
    evaluations = {"val": evaluate(made, made)}
    rows, summary = sample_run.rows(), sample_run.summary(made, evaluations)
    found = run_page.draw(summary, rows, evaluations, made)
    return {name.removesuffix("-val"): plot.figure for name, plot in found.items()}


def texts(figure: Figure) -> list[Text]:
    """What can be read in a figure."""
    with matplotlib.rc_context(plots.STYLE):
        FigureCanvasAgg(figure).draw()
        unseen = set()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                for tick in axis.get_major_ticks():
                    if not (axes.axison and low - 1e-9 <= tick.get_loc() <= high + 1e-9):
                        unseen |= {tick.label1, tick.label2}
        return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in unseen]


@pytest.mark.parametrize("classes", [1, 10, 21, 100])
def test_everything_is_labeled_and_nothing_is_cut_off_or_overlaps(classes):
    made = sample_run.predictions(classes, **(sample_run.superclasses(classes) if classes == 100 else {}))
    figures = drawn(made)
    assert set(figures) == ALL - ({"mistakes"} if classes == 1 else set())
    for name, figure in figures.items():
        assert figure.get_figwidth() == plots.WIDTH
        width, height = figure.get_size_inches() * figure.dpi
        boxes = [(text, text.get_window_extent()) for text in texts(figure)]
        assert len(boxes) > 10
        for text, box in boxes:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, (name, text)
            assert text.get_fontsize() >= 6.5, (name, text)  # a point is 1.4 pixels of 800
        straight = [(text, box.padded(-1.5)) for text, box in boxes if text.get_rotation() % 90 == 0]
        for i, (text, box) in enumerate(straight):
            for other, other_box in straight[i + 1 :]:
                assert not box.overlaps(other_box), (name, text, other)
        for axes in figure.axes:
            if not axes.axison:
                continue
            beside = {"x": axes.get_shared_x_axes(), "y": axes.get_shared_y_axes()}
            for which, shared in beside.items():
                labels = [getattr(each, f"get_{which}label")() for each in shared.get_siblings(axes)]
                ticks = [text.get_text() for text in getattr(axes, f"get_{which}ticklabels")()]
                assert any(labels) or not any(ticks) or any(tick.startswith("class ") for tick in ticks), (name, which)


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no Japanese, which reads as boxes
def test_hostile_and_foreign_names_are_drawn(tmp_path):
    made = sample_run.predictions(names=sample_run.HOSTILE)
    made.teacher_names = sample_run.HOSTILE[:3]
    before = dict(matplotlib.rcParams)
    for name, figure in drawn(made).items():
        plots.save(figure, tmp_path / f"{name}.png")
        assert Image.open(tmp_path / f"{name}.png").size[0] == 1280
        words = [text.get_text() for text in texts(figure)]
        assert all(line.isprintable() for word in words for line in word.split("\n"))
        assert all(len(word) < 60 for word in words if "xxx" in word)
        assert name != "confusion" or "$\\frac{$" in words  # as it is, not as a formula
    assert dict(matplotlib.rcParams) == before  # other plots of the program look as before


def test_the_same_values_are_the_same_bytes(tmp_path):
    for path in (tmp_path / "a.png", tmp_path / "b.png"):
        plots.save(plots.training_curves(sample_run.rows()), path)
        assert set(Image.open(path).info) == {"dpi"}  # no date, no version
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_training_curves_are_the_rows_and_the_star_is_the_selected_epoch():
    rows = sample_run.rows()
    epochs = [row for row in rows if "train/loss_total" in row]
    loss, accuracy, rate = plots.training_curves(rows).axes
    shown = lines(loss)
    assert shown["training, what is minimized"] == (list(range(1, 13)), [row["train/loss_total"] for row in epochs])
    assert shown["validation, cross-entropy (nats)"][1] == [row["val/loss_ce"] for row in epochs]
    assert lines(accuracy)["validation"][1] == [row["val/accuracy"] for row in epochs]
    [star] = [label for label in lines(accuracy) if label.startswith("selected")]
    assert star == "selected: epoch 11, 55.0%"  # the first of two
    assert [list(values[1]) for values in lines(rate).values()] == [[row["learning_rate"] for row in epochs]]


def test_the_star_is_on_the_average_of_the_weights_where_that_is_better():
    rows = [{**row, "val/ema_accuracy": 0.9 - row["val/accuracy"]} for row in sample_run.rows() if "val/loss_ce" in row]
    _, accuracy, _ = plots.training_curves(rows).axes
    shown = lines(accuracy)
    assert shown["validation, average of the weights"][1] == [row["val/ema_accuracy"] for row in rows]
    assert list(shown)[-1] == "selected: epoch 1, 85.0%"


def test_without_validation_there_is_no_star_and_without_an_epoch_no_plot():
    rows = [{name: value for name, value in row.items() if not name.startswith("val/")} for row in sample_run.rows()]
    _, accuracy, _ = plots.training_curves(rows).axes
    assert list(lines(accuracy)) == ["training, augmented"]
    with pytest.raises(ValueError, match="epoch"):
        plots.training_curves(rows[:1])
    assert plots.method_panels(rows[:1], []) == {}


def test_every_metric_of_a_method_has_its_panel():
    names = ["a", "b", "c"]
    panels = plots.method_panels(sample_run.rows(), names)
    assert set(panels[plots.SHARES].values()) == {"kd_weight", "gate"}
    assert set(panels[plots.TERMS].values()) == {"loss_label", "loss_distill"}  # loss_hard is loss_label
    assert list(panels[plots.WEIGHT].values()) == list(panels[plots.USAGE].values()) == ["0: a", "1: b", "2: c"]
    assert panels["unheard of"] == {"train/unheard_of": "unheard_of"} and "gradient norm" in panels
    shown = {name for series in panels.values() for name in series}
    logged = {name for row in sample_run.rows() for name in row if name.startswith("train/")}
    common = {"train/loss_total", "train/accuracy", "train/step_time"}
    assert logged - shown == common | {"train/loss_hard"}
    assert len(plots.method_metrics(sample_run.rows(), names).axes) == 6
    at = [0.5 - 0.01 * number for number in range(len(sample_run.rows()))]  # a loss, though between 0 and 1
    own = {"train/loss_features": 2.0, "train/feature/rkd": 2.0, "train/feature/fitnet": 40.0}
    rows = [{**row, **own, "train/feature/at": at.pop(0)} for row in sample_run.rows() if "train/loss_total" in row]
    featured = plots.method_panels(rows, names)
    assert featured.pop(plots.FEATURES) == {f"train/feature/{name}": f"feature/{name}" for name in ("at", "fitnet")}
    assert featured.pop(plots.TERMS) == panels[plots.TERMS] | {"train/loss_features": "loss_features"}
    assert featured == {title: series for title, series in panels.items() if title != plots.TERMS}
    many = plots.method_panels(sample_run.rows(teachers=12), ["long name"] * 12)
    assert list(many[plots.WEIGHT].values()) == list(map(str, range(12)))


def test_reliability_is_the_bins():
    bins = {"lower": [0, 0.5], "upper": [0.5, 1], "count": [0, 4]}
    bins |= {"mean_confidence": [None, 0.9], "accuracy": [None, 0.75]}
    scaled = {**bins, "mean_confidence": [float("nan"), 0.7], "accuracy": [float("nan"), 0.8]}
    axes, histogram = plots.reliability(bins, 0.15, (1.5, scaled, 0.1)).axes
    assert axes.get_title(loc="left") == "calibration error (ECE, 15 bins) 15.0%, 10.0% at fitted temperature 1.50"
    accuracy, gap = (container.patches for container in axes.containers)
    assert accuracy[1].get_height() == 0.75 and np.isnan(accuracy[0].get_height())
    assert gap[1].get_y() == 0.75 and gap[1].get_height() == pytest.approx(0.15)
    assert lines(axes)["accuracy at fitted temperature 1.50"] == ([0.7], [0.8])
    assert [patch.get_height() for patch in histogram.containers[0].patches] == [0, 1]


def test_error_bars_end_at_the_limits_of_the_metric():
    costs = {"a": (10.0, 0.99, 0.02), "b": (20.0, 0.5, 0.1), "c": (30.0, 0.7, None)}
    axes = plots.against_cost(costs, "val/accuracy", percent=True, within=(0.0, 1.0)).axes[0]
    ends = [bar.get_segments()[0][:, 1].tolist() for one in axes.containers for bar in one[2]]
    assert ends == [pytest.approx([0.97, 1.0]), pytest.approx([0.4, 0.6])]


def test_every_group_has_a_look_of_its_own():
    costs = {f"group {number}": (60.0 * (number + 2), 0.5, None) for number in range(20)}
    axes = plots.against_cost(costs, "val/accuracy", percent=True, within=(0.0, 1.0)).axes[0]
    lines = [container[0] for container in axes.containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 20
    assert [line.get_xdata()[0] for line in lines] == [number + 2 for number in range(20)]
    assert axes.get_xlabel() == "training time (minutes)"


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("classes", [10, 100])
def test_the_confusion_matrix_is_normalized_by_row(classes, grouped):
    generator = np.random.default_rng(0)
    matrix = generator.integers(0, 3, (classes, classes))
    matrix[3] = 0  # a class without images
    parents = sample_run.superclasses(classes) if grouped else {}
    names = [f"n{i}" for i in range(classes)]
    axes = plots.confusion(matrix.tolist(), names, parents.get("superclasses"), parents.get("superclass_names")).axes[0]
    order = np.argsort(parents["superclasses"], kind="stable") if grouped else np.arange(classes)
    expected = matrix[order][:, order] / np.maximum(matrix[order].sum(1, keepdims=True), 1)
    np.testing.assert_allclose(axes.get_images()[0].get_array(), expected)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    if classes == 10:
        assert labels == [f"n{i}" for i in order]
        cells = {(text.get_position()[::-1], text.get_text()) for text in axes.texts}
        there = {((r, c), str(matrix[order[r], order[c]])) for r in range(10) for c in range(10)}
        assert cells == {cell for cell in there if cell[1] != "0"}
    else:
        assert not axes.texts
        assert labels == (parents["superclass_names"] if grouped else [f"n{i}" for i in range(0, 100, 3)])


@pytest.mark.parametrize("classes", [3, 100])
def test_gains_are_sorted_and_named(classes):
    values = np.random.default_rng(1).normal(size=classes) / 10
    values[1] = 0.0
    names = [f"n{i}" for i in range(classes)]
    figure = plots.gains(names, values.tolist())
    order = np.argsort(-values, kind="stable")
    bars = [patch.get_width() for patch in figure.axes[-1 if classes == 3 else 1].patches]
    named = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels() if "n" in label.get_text()]
    better, worse = int((values > 0).sum()), int((values < 0).sum())
    assert figure.axes[0].get_title(loc="left") == f"{better} classes higher, {worse} lower, 1 equal"
    if classes == 3:
        assert named == [names[i] for i in order]
        assert bars == pytest.approx(100 * values[order])
    else:
        heights = [patch.get_height() for patch in figure.axes[0].patches]
        assert heights == pytest.approx(100 * values[order])
        assert named == [names[i] for i in [*order[:10], *order[::-1][:10]]]
        assert bars == pytest.approx(100 * values[order[:10]])
    sure = plots.gains(names, values.tolist(), [0.02] * classes)
    assert sure.axes[0].get_title(loc="left").endswith("1 equal; lines: one standard error")
    named_bars = sure.axes[-1 if classes == 3 else 1]
    [whiskers] = [one[2][0].get_segments() for one in named_bars.containers if hasattr(one, "has_xerr")]
    assert [end - start for (start, _), (end, _) in whiskers] == pytest.approx([4.0] * len(bars))


def test_weights_are_split_by_whether_the_teacher_is_right():
    made = sample_run.predictions(teachers=2)
    right = metrics.predictions(made.teachers) == made.labels
    figure = plots.teacher_weights(made.weights, right, ["a", "b"])
    for i, axes in enumerate(figure.axes):
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        for mask, word, text in ((right[i], "right", legend[0]), (~right[i], "wrong", legend[1])):
            assert text == f"{word}: {int(mask.sum())} images, mean {float(made.weights[i][mask].mean()):.2f}"
        assert axes.get_lines()[0].get_xdata()[0] == 0.5
    assert plots.teacher_weights(torch.ones(1, 5), torch.ones(1, 5, dtype=torch.bool), ["all right"])


def test_weights_beyond_0_and_1_are_shown():
    weights = torch.tensor([[1.59] * 5, [-0.59] * 5])
    figure = plots.teacher_weights(weights, torch.ones(2, 5, dtype=torch.bool), ["a", "b"])
    for axes, weight in zip(figure.axes, (1.59, -0.59), strict=True):
        [outline] = axes.patches
        shares = outline.get_xy()
        assert shares[:, 1].max() == pytest.approx(1), "all images are in a bin"
        assert abs(shares[shares[:, 1] > 0, 0] - weight).max() < 0.1
    rows = [{**row, "train/teacher/0/weight": 1.59, "train/teacher/1/weight": -0.59} for row in sample_run.rows()]
    [axes] = [one for one in plots.method_metrics(rows, ["a", "b"]).axes if one.get_ylabel() == plots.WEIGHT]
    low, high = axes.get_ylim()
    assert low < -0.59 and high > 1.59


def test_mistakes_name_the_truth_and_three_guesses_of_each():
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    images[1] = 255
    student = torch.tensor([[0.7, 0.2, 0.06, 0.04], [0.1, 0.2, 0.3, 0.4]])
    teacher = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.5, 0.0]])
    axes = plots.mistakes(images, torch.tensor([1, 2]), [student, teacher], ["student", "t"], list("ABCD")).axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words[:3] == ["student", "t", "image"] and words.count("true: B") == words.count("true: C") == 1
    first = words.index("true: B")
    assert words[first + 1 : first + 7] == ["A", "70%", "B ✓", "20%", "C", "6%"]
    assert words[first + 7 : first + 9] == ["B ✓", "100%"]
    assert [float(np.asarray(picture.get_array()).mean()) for picture in axes.get_images()] == [0, 255]


def test_names_are_shortened_on_one_line():
    assert plots.short("a\nb\tc", 18) == "a b c" and plots.short("bell\x07") == "bell\\x07"
    assert plots.short("a class called 12", 9) == "a cla… 12" and len(plots.short("日本語" * 20)) == 18
