"""Records of runs: what they keep, that they compare as the runs do, and damaged ones."""

import json
from types import SimpleNamespace

import pytest
from compared_runs import LABEL_ONLY, OTHERS, A, B, make, several

import compare_kd
import train_kd
from kd_core.comparison import recorded, runs
from kd_core.comparison.compare import compare
from kd_core.comparison.runs import Found
from kd_core.errors import UserError
from kd_core.teachers.load import ON_DEMAND

EVALUATION = {
    "accuracy": 0.612345678912,
    "per_class": [{"name": "cat", "count": 9, "accuracy": 0.25}, {"name": "dog", "count": 9, "accuracy": None}],
    "most_confused": [{"label": "cat", "predicted": "dog"}],
    "temperature_scaling": {"nll": 1.5},
}
SUMMARY = {
    "evaluation": {"test": EVALUATION},
    "environment": {"command": "python train_kd.py"},
    "cost": {"multiply_adds": 5, "latency_ms": {"1": 3.0}},
    "teachers": [{"name": "teacher.pth", "val_accuracy": 0.7}],
}
ROWS = [
    {"train_step/step": 5, "train_step/loss_total": 3.0},
    {"epoch": 1, "val/accuracy": 0.5, "perf/epoch_time": 12.3456, "perf/images_per_second": 900.0, "time": 1.7e9},
    {"test/accuracy": 0.55, "epoch": 1},
]


def some_runs():
    return [*several(A, summary=SUMMARY, rows=ROWS), *several(B, OTHERS, summary=SUMMARY), *several(LABEL_ONLY)]


@pytest.fixture
def record(tmp_path):
    recorded.write(tmp_path / "runs.json", some_runs())
    return tmp_path / "runs.json"


def test_a_record_compares_as_its_runs_do(record):
    options = {"also": ["test/accuracy"], "baseline": A, "margin": 0.5, "pool": True}
    found = runs.find([str(record)])
    assert not found.left_out and len(found.runs) == 15
    own, other = compare(found, **options), compare(Found(some_runs(), []), **options)
    for one in (own, other):
        for row in one["sets"][0]["groups"]:
            row["seeds"] = [(seed["seed"], seed["value"]) for seed in row["seeds"]]
            row["cost"]["training_seconds"] = round(row["cost"]["training_seconds"] or 0, 1)  # as in the record
            for values in filter(None, row["also"].values()):
                values["mean"] = round(values["mean"], 6)
    assert own == other


@pytest.mark.parametrize("pool", [False, True])
def test_equal_differences_stay_equal_in_a_record(tmp_path, pool):
    """As many images of 229 in each seed: rounding to seven digits leaves no difference to test."""
    own, other = [[(count + more) / 229 for count in (140, 151)] for more in (3, 0)]
    recorded.write(tmp_path / "runs.json", [*several(A, own), *several(B, other)])
    [one] = compare(runs.find([str(tmp_path / "runs.json")]), baseline=B, pool=pool)["sets"]
    test = one["groups"][1]["against_baseline"]
    assert test["p"] is None and test["why"] == "equal differences" and test["verdict"] == "inconclusive"


def test_what_is_kept(record):
    first = next(one for one in json.loads(record.read_text())["runs"] if one["config"]["kd"]["type"] == A)
    epoch = {"epoch": 1, "val/accuracy": 0.5, "perf/epoch_time": 12.3}
    assert first["rows"] == [epoch, {"test/accuracy": 0.55, "epoch": 1}]
    kept = first["summary"]["evaluation"]["test"]
    assert kept == {"accuracy": 0.6123457, "class_accuracy": [0.25, None], "temperature_scaling": {"nll": 1.5}}
    assert first["summary"]["cost"] == {"multiply_adds": 5} and "environment" not in first["summary"]
    assert (first["seed"], first["epochs"]) == (0, first["config"]["training"]["max_epochs"])
    assert first["group"] == f"{A}-cifar_resnet20-1t" and "/" not in first["name"]


@pytest.mark.parametrize("place", ["/of/somebody/teacher.pth", "C:\\somebody\\teacher.pth", "~/somebody/teacher.pth"])
def test_paths_are_names_alone(tmp_path, place):
    summary = {"teachers": [{"name": place}]}
    run = make(A, teachers=[{"model": "cifar_resnet56", "weights": place}], summary=summary)
    recorded.write(tmp_path / "one.json", [run])
    assert "somebody" not in (tmp_path / "one.json").read_text()
    [again] = runs.find([str(tmp_path / "one.json")]).runs
    assert again.config.teachers[0].weights == again.teachers[0] == "teacher.pth"


def test_a_run_in_a_record_and_in_another_counts_once(record, tmp_path):
    other = tmp_path / "again.json"
    other.write_text(record.read_text())
    found = runs.find([str(record), str(other)])
    assert len(found.runs) == len(found.left_out) == 15
    assert all("the same run as" in reason for _, reason in found.left_out)


def test_the_newest_of_two_runs_with_one_seed_is_recorded(tmp_path, monkeypatch, capsys):
    """Whichever name comes first."""
    first, second, other = make(A, 0, 0.1), make(A, 0, 0.9), make(A, 1, 0.3)
    path = tmp_path / "runs.json"
    for newest, older in ((first, second), (second, first)):
        newest.created, older.created = 2.0, 1.0
        with monkeypatch.context() as patched:
            patched.setattr(runs, "find", lambda names: Found([second, other, first], []))
            compare_kd.main(["runs", f"--record={path}"])
        assert "2 runs recorded" in capsys.readouterr().out
        again = runs.find([str(path)]).runs
        assert {run.seed: run.figure("val/accuracy") for run in again} == {0: newest.figure("val/accuracy"), 1: 0.3}


def test_the_newest_of_a_record_and_others_is_known(tmp_path):
    """By when the run began; of records that do not say it by the time of the file."""
    path = tmp_path / "runs.json"
    recorded.write(path, [make(A, created=5.3)])
    assert [run.created for run in runs.find([str(path)]).runs] == [5]
    path.write_text(path.read_text().replace('"created"', '"unknown"'))
    assert [run.created for run in runs.find([str(path)]).runs] == [path.stat().st_mtime]


def test_seeds_print_a_command_with_their_own_code(record, monkeypatch):
    said: list[str] = []
    job = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True), say=said.append)
    options = SimpleNamespace(seeds=[0, 1], resume=None, config=[])
    monkeypatch.setattr(train_kd, "train_student", lambda *rest: [str(record)])
    for imports, shown in (([], ""), (["own code.py", "b.py"], " --import 'own code.py' --import b.py")):
        train_kd.train(make(A).config.model_copy(update={"imports": imports}), job, [], options, [])
        assert said[-1].splitlines()[-1] == f"compare: python compare_kd.py{shown} {record} {record}"


def test_a_teacher_that_was_named_and_recorded_is_read(tmp_path):
    recorded.write(tmp_path / "runs.json", [make(LABEL_ONLY, wandb={"group": ON_DEMAND})])
    assert len(runs.find([str(tmp_path / "runs.json")]).runs) == 1


def test_own_code_that_a_recorded_run_needs_is_named(record):
    values = json.loads(record.read_text())
    values["runs"][0]["config"] |= {"kd": {"type": "mine"}, "import": ["folder/mine.py"]}
    record.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"(?s)runs.json#\d+: .*'mine'.*with own code; add --import FILE for mine.py"):
        runs.find([str(record)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: one.pop("config"), "config: damaged, expected an object {...}"),
        (lambda one: one.update(rows={}), "rows: damaged, expected a list"),
        (lambda one: one.update(rows=[3]), "rows: damaged, expected a list of objects"),
        (lambda one: one.update(run_id=3), "run_id: damaged, expected text"),
        (lambda one: one.update(identity={}), "identity.json: damaged"),
        (lambda one: one["config"].update(typo=1), "typo: unknown key"),
    ],
)
def test_a_damaged_run_is_left_out_with_the_reason(record, change, reason):
    values = json.loads(record.read_text())
    change(values["runs"][0])
    record.write_text(json.dumps(values))
    found = runs.find([str(record)])
    assert len(found.runs) == 14 and reason in found.left_out[0][1]


@pytest.mark.parametrize(
    "text", ["{}", '{"format": "kd runs, version 1", "runs": [3]}', '{"format": "other", "runs": []}']
)
def test_another_file_is_none(tmp_path, text):
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(UserError, match=r"one.json: is no record of runs \('kd runs, version 1'\)"):
        runs.find([str(tmp_path / "one.json")])
