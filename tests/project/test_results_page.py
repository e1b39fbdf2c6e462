"""The tables of docs/results.md are those that its records give, and records are fit to be published."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import results_cost
import results_facts
import results_page
import results_plots
import statsmodels.formula.api as smf
from PIL import Image
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests

RECORDS = sorted(results_page.RECORDS.glob("*.json"))
FIXED = results_page.FIXED


def teacher_runs() -> list:
    return results_page.recorded("teachers").runs


@pytest.mark.parametrize("page", results_page.PAGES, ids=lambda path: path.name)
def test_the_page_is_up_to_date(page):
    text = page.read_text()
    assert results_page.PAGES[page](text) == text, "run: python tests/tools/results_page.py"


def recomputed(one: dict, table: dict) -> tuple[float, float, float, float]:
    """statsmodels: (difference to the baseline, both ends of its 95% interval, p); with `pooled` of all groups."""
    values = {row["label"]: {str(run["seed"]): run["value"] for run in row["seeds"]} for row in table["groups"]}
    base = values[table["baseline_label"]]
    if table["pooled"]:
        rows = [(label, seed, value) for label, own in values.items() for seed, value in own.items()]
        data = pd.DataFrame(rows, columns=["group", "seed", "value"])
        group = f"C(group, Treatment({table['baseline_label']!r}))"
        fit, name = smf.ols(f"value ~ {group} + C(seed)", data).fit(), f"{group}[T.{one['label']}]"
        return found_by(fit, name)
    return paired(values[one["label"]], base)


def paired(own: dict[str, float], base: dict[str, float]) -> tuple[float, float, float, float]:
    """As `recomputed`, of the seeds that both have."""
    data = pd.DataFrame({"value": [own[seed] - base[seed] for seed in own.keys() & base.keys()]})
    return found_by(smf.ols("value ~ 1", data).fit(), "Intercept")


def found_by(fit, name: str) -> tuple[float, float, float, float]:
    return fit.params[name], *fit.conf_int().loc[name], fit.pvalues[name]


@pytest.mark.parametrize("name", results_page.TABLES)
def test_an_independent_computation_finds_the_same_statistics(name):
    result, _ = results_page.compared(*results_page.TABLES[name])
    for table in result["sets"]:
        tested = [row for row in table["groups"] if (row["against_baseline"] or {}).get("p") is not None]
        require_same([row["against_baseline"] for row in tested], [recomputed(row, table) for row in tested])
    tested = [test for test in result["contrasts"] if test["p"] is not None]
    values = {row["label"]: {run["seed"]: run["value"] for run in row["seeds"]} for row in all_groups(result)}
    require_same(tested, [paired(values[test["label"]], values[test["against"]]) for test in tested])


def all_groups(result: dict) -> list[dict]:
    return [row for table in result["sets"] for row in table["groups"]]


def require_same(tests: list[dict], wanted: list[tuple[float, float, float, float]]):
    """The same differences, intervals and p as wanted, and those corrected by Holm."""
    holm = multipletests([p for *_, p in wanted], method="holm")[1] if wanted else []
    for test, one, p_holm in zip(tests, wanted, holm, strict=True):
        own = (test["mean"], *test["interval"], test["p"], test["p_holm"])
        assert own == pytest.approx((*one, p_holm), abs=1e-12, rel=1e-9)


def test_the_plot_can_be_drawn_again(tmp_path):
    results_page.draw(tmp_path)
    with Image.open(tmp_path / "teachers.png") as drawn, Image.open(results_page.RECORDS / "teachers.png") as kept:
        assert drawn.size == kept.size and drawn.getextrema() != ((255, 255),) * len(drawn.getbands())


def test_groups_that_lack_seeds_or_times_are_drawn_too(tmp_path):
    alone, taught = results_plots.rows(teacher_runs())
    [first, *others] = [run for one in (alone, *taught) for run in one.runs.values() if run.seed == 0]
    last = others.pop()
    training = last.config.training.model_copy(update={"seed": 7})  # a seed that the student alone lacks
    others.append(replace(last, config=last.config.model_copy(update={"training": training})))
    others[0] = replace(others[0], rows=[])
    results_plots.teachers([first, *others], tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as drawn:
        assert drawn.getextrema() != ((255, 255),) * len(drawn.getbands())


def test_passes_are_counted_by_view():
    [run, *_] = [run for run in teacher_runs() if len(run.teachers) == 3]
    network = run.config.teachers[0].model

    def cost(*teachers: dict, **cache) -> results_cost.Cost:
        changed = [run.config.teachers[0].model_copy(update=values) for values in teachers]
        settings = {"teachers": changed, "cache": run.config.cache.model_copy(update=cache)}
        return results_cost.of(replace(run, config=run.config.model_copy(update=settings)))

    clean, file = {"view": "clean"}, {"model": None, "weights": None, "logits": "file.safetensors"}
    assert cost().teacher_passes == cost().teachers == 0
    assert cost(clean, file).teacher_passes == 1
    assert cost({"view": "shared"}, clean, mode="fixed", views=4).teacher_passes == 5
    assert cost(clean).teachers == pytest.approx(results_cost.multiply_adds(network) * 50_000 / 1e12)
    assert cost().student == pytest.approx(15 * 3 * run.figure("cost.multiply_adds") * 50_000 / 1e12)
    with pytest.raises(ValueError, match="every epoch"):
        cost({"view": "shared"}, mode="lazy")


def test_every_record_has_a_table_and_all_are_small():
    shown = {name for records, _ in results_page.TABLES.values() for name in records.split()}
    assert {path.stem for path in RECORDS} == shown
    assert sum(path.stat().st_size for path in RECORDS) <= 2 * 2**20


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_names_no_folder_and_says_what_each_run_is(path):
    text = path.read_text()
    assert not re.search(r'"(/|~)', text)
    for run in json.loads(text)["runs"]:
        assert run["epochs"] == run["summary"]["epochs"] and isinstance(run["seed"], int) and run["group"]


def cells_of(table: str) -> list[list[str]]:
    """The rows below the header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_differences_by_seed_have_the_means_of_the_contrasts():
    result, _ = results_page.compared(*results_page.TABLES["contrasts"])
    rows = cells_of(results_facts.by_seed(result, FIXED))
    assert [row[0] for row in rows] == [pair.replace("results-", "").replace(":", " against ") for pair in FIXED]
    for row, test in zip(rows, result["contrasts"], strict=True):
        shown = [float(cell) for cell in row[1:] if cell]
        assert len(shown) == len(test["seeds"]) and np.mean(shown) == pytest.approx(100 * test["mean"], abs=0.005)


def test_gains_of_classes_have_the_mean_of_the_gain():
    alone, taught = results_plots.rows(teacher_runs())
    for one in taught:
        if len(common := results_plots.common_seeds(one, alone)) < 2:
            continue
        sides = [[side.values(results_plots.METRIC)[seed] for seed in common] for side in (one, alone)]
        gains, chance, p = results_plots.class_gains(one, alone)
        assert gains.mean() == pytest.approx(100 * np.subtract(*map(np.mean, sides)), abs=1e-9)
        each = np.ndenumerate(results_plots.by_class(one, alone))
        table = pd.DataFrame([(seed, label, gain) for (seed, label), gain in each], columns=["seed", "label", "gain"])
        found = anova_lm(smf.ols("gain ~ C(label) + C(seed)", table).fit())
        assert p == pytest.approx(found.loc["C(label)", "PR(>F)"], rel=1e-6, abs=1e-12)
        assert len(common) * chance**2 == pytest.approx(found.loc["Residual", "mean_sq"])


def test_public_teachers_are_as_accurate_as_published():
    """But for the rounding of their logits; pytorch-cifar-models' and MicroNet's figures."""
    shown = {name: float(accuracy) for name, accuracy, *_ in cells_of(results_facts.the_teachers(teacher_runs()))}
    published = {"56": 72.63, "44": 71.63, "32": 70.16, "20": 68.83, "micronet": 80.26}
    assert {name: shown[name] for name in published} == pytest.approx(published, abs=0.04)


def test_the_course_of_training_ends_at_the_training_accuracy():
    first, *others = cells_of(results_facts.by_epoch(teacher_runs()))
    result, _ = results_page.compared(*results_page.TABLES["teachers"])
    [alone] = [row for row in result["sets"][0]["groups"] if row["label"] == "alone"]
    base = 100 * alone["also"]["train/accuracy"]["mean"]
    assert float(first[-1]) == pytest.approx(base, abs=0.05)
    [shown] = [float(row[-1]) for row in others if row[0] == "56+44+32+20, clean views"]
    runs = [run for run in teacher_runs() if run.config.name == "results-56-44-32-20" and run.seed in (0, 1, 2)]
    assert shown == pytest.approx(100 * np.mean([run.figure("train/accuracy") for run in runs]) - base, abs=0.05)


INTERVAL = re.compile(r"([+-]\d+\.\d+)\s+\[([+-]\d+\.\d+),\s+([+-]\d+\.\d+)\]")
GENERATED = re.compile(r"<!-- generated.*?<!-- end -->", re.DOTALL)


def intervals(text: str) -> list[tuple[str, ...]]:
    return INTERVAL.findall(text.replace("\\", "").replace("−", "-"))


@pytest.mark.parametrize("name", ["docs/results.md", "docs/choosing.md", "README.md"])
def test_every_interval_in_the_text_is_that_of_a_table(name):
    """Rounded or not; they are written by hand, and runs that are added change them."""
    page = results_page.PAGE.read_text()
    shown = intervals("".join(GENERATED.findall(page)) + page[page.index("## Earlier") :])
    prose = intervals(GENERATED.sub("", (results_page.ROOT / name).read_text()))
    assert prose

    def is_shown(one: tuple[str, ...]) -> bool:
        half = 0.5 * 10.0 ** -len(one[0].partition(".")[2]) + 1e-9
        return any(all(abs(float(a) - float(b)) <= half for a, b in zip(one, row, strict=True)) for row in shown)

    assert [one for one in prose if not is_shown(one)] == [], "not, or no longer, in a table of docs/results.md"
