"""Training with `kd.features`: student and method as one module, teachers that run once per step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_off import cut_off_at
from run_metrics import times_apart
from safetensors.torch import load_file
from torch import nn

import kd_methods
import train_kd
from kd_core.config import Layer, resolve
from kd_core.errors import UserError
from kd_core.loop.optimizer import NonFiniteSteps, create_optimizer
from kd_core.models import build as models
from kd_core.models.layer_features import WithFeatures
from kd_core.run.folder import read_metrics
from kd_core.teachers import cache
from kd_core.teachers.kept_features import KeptFacts
from kd_core.teachers.logits import TeacherLogits
from kd_methods import StudentOutput, TeacherOutputs

STUDENT = {"name": "test_vit", "img_size": 32, "args": {"patch_size": 8, "depth": 3, "embed_dim": 48, "drop_rate": 0.2}}
# A vector per map, a projector with BatchNorm, and banks of all rows.
FEATURES = [
    {"loss": "at", "student": [-1], "teacher": [-1], "warmup": 0.5},
    {"loss": "fitnet", "weight": 1.0, "student": ["blocks.2"], "teacher": [[2], ["layer2"]]},
    {"loss": "crd", "weight": 0.1, "width": 8, "negatives": 16},
]


def words(
    home: Path, teachers: list[Path], *more: str, features: Any = FEATURES, student: Any = STUDENT
) -> list[str]:
    team = [{"weights": str(teachers[0])}, {"weights": str(teachers[1]), "view": "clean"}]
    return [
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}", "--no-wandb", "--name=tried",
        f"--model={json.dumps(student)}", f"--teachers={json.dumps(team)}", "--kd.type=average",
        f"--kd.features={json.dumps(features)}", "--data.train_size=120", "--data.batch_size=30",
        "--training.max_epochs=2", "--training.log_every=1", "--training.compare_with_baseline=false",
        "--evaluation.report=false", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits_teachers) -> Path:
    """The folder of an uninterrupted run."""
    home = tmp_path_factory.mktemp("whole")
    train_kd.main(words(home, digits_teachers))
    [folder] = (home / "runs").glob("tried-*")
    return folder


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "latest" / "training.pt", weights_only=True)


def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(whole, tmp_path, digits_teachers):
    more = words(tmp_path, digits_teachers, "--training.save_every_steps=3")
    with cut_off_at(7):
        train_kd.main(more)
    [folder] = (tmp_path / "runs").glob("tried-*")
    within = state_of(folder)["within_epoch"][0]["buffers"]
    assert {name.rpartition(".")[2] for name in within if name.startswith("method.")} >= {"running_mean", "banks"}
    train_kd.main(more)
    found, expected = (times_apart(read_metrics(path / "metrics.jsonl")) for path in (folder, whole))
    assert found == expected and len(found) == 1 + 8 + 2
    for name, value in state_of(whole)["method"].items():
        assert torch.equal(value, state_of(folder)["method"][name]), name
    ours, theirs = (load_file(path / "student" / "model.safetensors") for path in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_projectors_are_trained_and_kept_but_are_no_part_of_the_student(whole):
    method = state_of(whole)["method"]
    assert any(name.endswith("running_mean") and value.any() for name, value in method.items())
    own = load_file(whole / "student" / "model.safetensors")
    assert not any("method" in name or "feature" in name for name in own)
    assert json.loads((whole / "summary.json").read_text())["parameters"] == sum(w.numel() for w in own.values())
    assert len(state_of(whole)["optimizer"]["state"]) > len(own)


def test_the_average_is_the_students_alone(tmp_path, digits_teachers):
    epochs = train_kd.epochs_of(words(tmp_path, digits_teachers, "--training.max_epochs=1", "--training.ema.every=2"))
    assert "val/ema_accuracy" in next(epochs)
    epochs.close()
    [latest] = (tmp_path / "runs").glob("tried-*/checkpoints/latest")
    average, student = (load_file(latest / name / "model.safetensors") for name in ("average", "student"))
    assert average.keys() == student.keys()
    assert any(not torch.equal(average[name], student[name]) for name in student)


def test_the_term_is_logged_and_validation_is_without_it(whole):
    rows = [row for row in read_metrics(whole / "metrics.jsonl") if row.get("train/loss_total")]
    for row in rows:
        term = row["train/loss_total"] - row["train/loss_ce"] - row["train/loss_kl"]
        assert row["train/loss_features"] == pytest.approx(term, rel=1e-4) and term > 0
        assert {"train/feature/at", "train/feature/fitnet", "train/feature/crd"} <= set(row)
        assert not any("feature" in name for name in row if name.startswith("val/"))
        assert row["perf/teacher_cache_hit_rate"] == 0.5  # of the teacher on clean views alone; see below


def test_each_network_runs_once_per_step_and_rows_are_places_in_the_split(tmp_path, digits_teachers, monkeypatch):
    epochs = train_kd.epochs_of(words(tmp_path, digits_teachers, "--training.max_epochs=1"))
    original, calls, rows = train_kd.prepare, [], []

    def spying(*arguments: Any, **options: Any) -> Any:
        setup = original(*arguments, **options)
        networks = [setup.network.model, *(setup.teachers._source(index).network for index in range(2))]
        for number, network in enumerate(networks):
            body = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
            body.register_forward_pre_hook(
                lambda *_, number=number, network=network: calls.append(
                    (number, setup.method.training, network.training)
                )
            )
        forward = setup.method.forward
        setup.method.forward = lambda *a, rows=None, **k: (kept.append(rows), forward(*a, rows=rows, **k))[1]
        kept, setup.method.kept = rows, None
        return setup

    monkeypatch.setattr(train_kd, "prepare", spying)
    next(epochs)
    epochs.close()
    seen = [number for number, training, _ in calls if training]
    assert seen.count(1) == 4 and seen.count(2) == 0  # the last one's clean views are cached
    assert sum(number == 0 and own for number, _, own in calls) == 4  # the student, validation apart
    places = torch.cat([step for step in rows if step is not None])
    assert sorted(places.tolist()) == list(range(120))


VECTORS = [FEATURES[0], FEATURES[2], {"loss": "rkd", "weight": 1.0}]  # the last two keep the embedding


def trained(home: Path, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], list[float]]:
    """The rows without times, the weights and the cache's hit rates of a new run."""
    train_kd.main([*arguments, "--fresh"])
    folder = max((home / "runs").glob("tried-*"), key=lambda path: path.stat().st_mtime)
    rows = read_metrics(folder / "metrics.jsonl")
    rates = [row["perf/teacher_cache_hit_rate"] for row in rows if "perf/teacher_cache_hit_rate" in row]
    return times_apart(rows), load_file(folder / "student" / "model.safetensors"), rates


@contextmanager
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The teachers whose networks are built within the block."""
    original, seen = models.load_export, list[str]()

    def looking(folder: Path) -> Any:
        if "teachers" in Path(folder).parts:
            seen.append(Path(folder).parent.name.rpartition("-")[0])
        return original(folder)

    with monkeypatch.context() as patch:
        patch.setattr(models, "load_export", looking)
        yield seen


@pytest.mark.parametrize("mode", ["clean", "fixed", "lazy"])
def test_cached_features_train_as_computed_ones_bit_for_bit(mode, tmp_path, digits_teachers, monkeypatch, capsys):
    """Computed in every step, from a cold cache, from a warm one, and from a damaged one."""
    features = FEATURES if mode != "lazy" else VECTORS
    arguments = words(tmp_path, digits_teachers, f"--cache.mode={mode}", "--cache.views=3", features=features)
    with monkeypatch.context() as patch:
        patch.setattr(TeacherLogits, "open_caches", lambda self, images, notify: self.open_files(images.split))
        rows, weights, rates = trained(tmp_path, *arguments)
        assert rates == [0, 0]
    stores = (tmp_path / "cache" / "logits").glob
    for kind, expected in {
        "cold": {"clean": [0.5, 0.5], "fixed": [1, 1], "lazy": [0.5, 0.5]}[mode],
        "warm": {"clean": [0.5, 0.5], "fixed": [1, 1], "lazy": [1, 1]}[mode],
        "damaged": None,
    }.items():
        if kind == "damaged":
            kept = [path.parent for path in stores("*/about.json") if ", layers" in path.read_text()]
            assert len(kept) == {"clean": 3, "fixed": 6, "lazy": 4}[mode]
            for path in kept:
                data = bytearray((path / "logits").read_bytes())
                places = [place for place in range(0, len(data), 2) if data[place] or data[place + 1]]
                data[places[0]] ^= 1
                (path / "logits").write_bytes(data)
        with built(monkeypatch) as networks, monkeypatch.context() as patch:
            if kind == "warm" and mode != "lazy":  # on a disk that is full of what is stored; lazy has more to come
                patch.setattr(cache, "free_gigabytes", lambda folder: 1e-6)
            found_rows, found, rates = trained(tmp_path, *arguments)
        assert found_rows == rows, kind
        if kind == "warm":  # what is known of features is kept, too
            assert len(networks) == (mode == "clean")  # the teacher that runs in every step
        assert all(torch.equal(found[name], value) for name, value in weights.items()), kind
        if kind == "damaged":
            assert "teachers' features are computed again" in "".join(capsys.readouterr())
            assert 0.5 <= min(rates) or mode == "clean"
        elif mode != "lazy" or kind == "warm":
            assert rates == expected, kind


HEADS = [{"loss": name, "teacher": [[-1], ["act1"]]} for name in ("sdd", "ca_mkd", "cat_kd", "simkd")]


def test_a_teacher_is_built_only_where_its_last_layer_is_not_kept(tmp_path, digits_teachers, monkeypatch):
    """One whose file is damaged; the student is the same."""
    more = ("--cache.mode=fixed", "--cache.views=1", "--training.max_epochs=1", "--data.train_size=60")
    arguments = words(tmp_path, digits_teachers, *more, features=HEADS, student={"name": "cifar_resnet8"})
    with monkeypatch.context() as patch:
        patch.setattr(KeptFacts, "find", lambda *_: None)
        rows, weights, _ = trained(tmp_path, *arguments)
    file, _ = (tmp_path / "cache" / "logits").glob("*/classifier.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with built(monkeypatch) as networks:
        found_rows, found, rates = trained(tmp_path, *arguments)
    assert networks == [json.loads((file.parent / "about.json").read_text())["teacher"]] and rates == [1]
    assert found_rows == rows and all(torch.equal(found[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("mode", "max_gb", "features", "message"),
    [
        ("fixed", 1e-5, FEATURES, "cache.mode: fixed would take [0-9.e-]+ GB for the teachers' logits and features"),
        ("lazy", 20, FEATURES, r"cache.mode: kd.features needs maps or tokens of every view, which lazy does not hold"),
        ("lazy", 1e-5, VECTORS, "lazy would take [0-9.e-]+ GB .*; fixed with 8 views [0-9.e-]+ GB and clean views"),
    ],
)
def test_a_cache_that_cannot_hold_the_features_is_refused(
    mode, max_gb, features, message, tmp_path, digits_teachers, monkeypatch
):
    """Before the student is trained without teachers, to be compared with."""
    monkeypatch.setattr(train_kd, "run", lambda *a, **k: pytest.fail("training began"))
    arguments = words(tmp_path, digits_teachers, f"--cache.mode={mode}", f"--cache.max_gb={max_gb}", features=features)
    with pytest.raises(UserError, match=message):
        train_kd.main(arguments)


def test_check_names_each_layer_with_its_shape(tmp_path, digits_teachers, capsys, monkeypatch):
    monkeypatch.setattr(train_kd, "CHECK_STEPS", 1)
    monkeypatch.setattr(train_kd, "WARM_UP_STEPS", 1)
    train_kd.main(words(tmp_path, digits_teachers, "--check"))
    text = capsys.readouterr().out
    for line in (
        "  feature   model.name 'test_vit', layer -1: 48 x 4 x 4\n",
        "  feature   model.name 'test_vit', layer blocks.2: 17 x 48\n",
        "  feature   teachers[0] 'cifar_resnet8', layer embedding: 64\n",
        "  feature   teachers[1] 'cifar_wrn_16_1', layer layer2: 32 x 16 x 16\n",
    ):
        assert line in text, text
    assert "  cache     clean, up to 0.0" in text and "GB for the teachers' logits and features; teachers run" in text
    assert "+ 1 x hints (FitNet, regressor conv_bn_relu) + 0.1 x contrastive loss" in text


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([{"loss": "at", "student": [9], "teacher": [-1]}], r"layer 9 of model.name 'test_vit': there is no such st"),
        ([{"loss": "at", "teacher": [-1, 7, 1]}], r"layer 7 of teachers\[0\] 'cifar_resnet8': there is no such st"),
        (
            [{"loss": "at", "student": ["embedding"], "teacher": [-1]}],
            r"kd.features\[0\] \(at\), teacher 0: student\[0\] gives embedding of shape \[48\]; the loss takes map",
        ),
        ([{"loss": "cat_kd"}], r"loss 'cat_kd' needs a head of average pooling and one linear layer, which teachers"),
    ],
)
def test_what_does_not_fit_is_said_before_training(features, message, tmp_path, digits_teachers, monkeypatch):
    monkeypatch.setattr(train_kd, "run", lambda *a, **k: pytest.fail("training began"))
    if "cat_kd" in message:
        monkeypatch.setattr(WithFeatures, "_has_linear_head", lambda *_: False)
    with pytest.raises(UserError, match=message):
        train_kd.main(words(tmp_path, digits_teachers, features=features))


SETTINGS = {"kd": {"type": "average", "features": [{"loss": "at"}]}, "teachers": [{"weights": "a.pt"}] * 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kd": {"type": "average", "features": [{"loss": "at"}, {"loss": "at", "teacher": [[-3, -2, -1]] * 3}]}},
            r"kd.features\[1\].teacher: has layers of 3 teachers, and there are 2",
        ),
        (
            {"teachers": [{"weights": "a.pt"}, {"logits": "b.safetensors"}]},
            r"teachers\[1\].logits: a file of logits has no features",
        ),
        (
            {"kd": {"type": "baseline", "features": [{"loss": "at"}]}},
            "kd.features: belongs to aekd, average, .*not to this",
        ),
    ],
)
def test_settings_that_do_not_go_with_features(changes, message):
    with pytest.raises(UserError, match=message):
        resolve([Layer("x.yaml", {**SETTINGS, **changes})])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
@pytest.mark.parametrize("decay_all", [True, False])
def test_projectors_are_optimized_in_groups_like_the_students(name, decay_all):
    config = resolve([Layer("x.yaml", SETTINGS)]).config.training
    config = config.model_copy(update={"optimizer": name, "weight_decay": 0.1, "decay_norms_and_biases": decay_all})
    student, method = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    optimizer = create_optimizer(student, config, torch.device("cpu"), method)
    decays = {
        id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]
    }
    own = [*student.parameters(), *method.parameters()]
    assert len(decays) == len(own)
    for weight in own:
        assert decays[id(weight)] == (0.1 if decay_all or weight.ndim > 1 else 0.0)
    before = method[0].weight.clone()
    (method(student(torch.rand(2, 3, 3, 3)).flatten(1)) - 1).square().sum().backward()
    optimizer.step()
    assert not torch.equal(method[0].weight, before)


def test_a_skipped_step_takes_back_what_the_forward_pass_has_changed():
    """BatchNorm's statistics from copies; banks, which are not copied, by their rows."""
    entries = [
        {"loss": "crd", "student": [0], "teacher": [0], "width": 4, "negatives": 3},
        {"loss": "fitnet", "student": [1], "teacher": [1]},
    ]
    shapes = [(6,), (3, 4, 4)]
    labels = torch.arange(12) % 3
    method = kd_methods.build(
        {"type": "average", "features": entries}, student_shapes=shapes, teacher_shapes=[shapes], train_labels=labels
    )
    rows, optimizer = torch.tensor([4, 0, 7]), torch.optim.SGD(method.parameters(), 0.1, fused=True)
    features = tuple(torch.rand(3, *shape) for shape in shapes)
    copied = method.copied_buffers()
    [banks] = [value for name, value in method.named_buffers() if name.endswith("banks")]
    assert not any(value is banks for value in copied) and len(copied) == len(list(method.buffers())) - 1
    guard = NonFiniteSteps(optimizer, copied, method.take_back)
    for norm, stays in (("nan", True), ("1", False)):
        before = {name: value.clone() for name, value in method.state_dict().items()}
        guard.begin()
        student, teachers = StudentOutput(torch.rand(3, 3), features), TeacherOutputs(torch.rand(1, 3, 3), (features,))
        method(student, teachers, labels[rows], rows=rows)[0].backward()
        guard.skip(torch.tensor(float(norm)))
        changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
        assert bool(changed) is not stays
        assert stays or {name.rpartition(".")[2] for name in changed} >= {"banks", "updates", "running_mean"}
