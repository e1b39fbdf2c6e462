"""The moving average of the student's weights: its arithmetic, resuming, and which weights are exported."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_metrics import times_apart
from safetensors.torch import load_file
from torch import Tensor, nn

import train_kd
from kd_core.config import EmaConfig, Layer, resolve
from kd_core.errors import UserError
from kd_core.loop.optimizer import take_step
from kd_core.models import WeightAverage
from kd_core.run import folder as run_folder
from kd_core.run.checkpoints import Progress
from kd_core.run.folder import read_metrics


class Tied(nn.Module):
    """Two layers that share a weight, statistics, a counter, and a constant outside the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("places", torch.arange(3.0), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return self.last(self.norm(self.first(values)).relu())


def share_of(update: int, settings: EmaConfig) -> float:
    """The weight of update 1, 2, ..., as the documentation says."""
    decay = min(settings.decay, 1 - update ** (-2 / 3)) if settings.warmup else settings.decay
    return 1.0 if update == 1 else 1 - decay


def decayed_sum(history: list[Tensor], shares: list[float]) -> Tensor:
    """The sum of all that was taken in, each times its share and what later updates have left of it; fp64."""
    total = torch.zeros_like(history[0], dtype=torch.float64)
    for place, value in enumerate(history):
        left = 1.0
        for later in shares[place + 1 :]:
            left *= 1 - later
        total += shares[place] * left * value.double()
    return total


@pytest.mark.parametrize("skipping", [False, True])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_the_decayed_sum(warmup, every, skipping):
    """Of parameters and BatchNorm's statistics; steps that were skipped leave it as it is."""
    torch.manual_seed(0)
    model, settings = Tied(), EmaConfig(decay=0.9, warmup=warmup, every=every)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    average = WeightAverage(model, settings)
    model._apply(torch.clone)  # as Accelerate may replace tensors when it wraps a network
    history, shares = [copy.deepcopy(model.state_dict())], [1.0]  # before the first update, which copies
    for step in range(40):
        model(torch.randn(8, 4)).square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        skipped = skipping and step % 4 == 1
        average.update(step, torch.tensor(skipped) if skipping else None)
        if (step + 1) % every == 0 and not skipped:
            history.append(copy.deepcopy(model.state_dict()))
            shares.append(share_of((step + 1) // every, settings))
    found = average.model.state_dict()
    assert found.keys() == model.state_dict().keys() and len(history) > 10
    for name, value in found.items():
        if value.is_floating_point():
            expected = decayed_sum([state[name] for state in history], shares)
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found["last.weight"], history[-1]["last.weight"], rtol=1e-2)
    assert found["norm.num_batches_tracked"] == 40 - 40 % every
    assert average.model.last.weight is average.model.first.weight and not average.model.training
    assert torch.equal(average.model.places, torch.arange(3.0))


@pytest.mark.slow
def test_the_average_follows_a_compiled_network():
    states = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        torch.manual_seed(0)
        model = Tied()
        average, wrapped = WeightAverage(model, EmaConfig()), wrap(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
        for step in range(3):
            wrapped(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
            average.update(step)
        states.append(average.model.state_dict())
        assert not torch.equal(states[-1]["first.weight"], model.first.weight)
    assert equal(*states)


def test_weights_of_half_precision_are_averaged_in_fp32():
    model = nn.Linear(2, 2, bias=False).to(torch.bfloat16)
    average = WeightAverage(model, EmaConfig(decay=0.999, warmup=False))
    for step, value in enumerate((1.0, 2.0)):
        model.weight.data.fill_(value)
        average.update(step)
    assert average.model.weight.dtype == torch.float32
    torch.testing.assert_close(average.model.weight.detach(), torch.full((2, 2), 1.001))  # 1 in bf16


def test_a_step_that_loss_scaling_skips_does_not_enter():
    """A fused optimizer skips it on the device, and its step is called all the same."""
    model = nn.Linear(2, 1)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1, fused=True), torch.amp.GradScaler("cpu")
    average = WeightAverage(model, EmaConfig(decay=0.5, warmup=False))

    class Scaled:
        """As Accelerate's optimizer steps."""

        def step(self) -> None:
            scaler.step(optimizer)
            scaler.update()

    told = []
    for step, size in enumerate((1.0, float("inf"), 1.0)):
        before = average.model.weight.clone()
        scaler.scale(model(torch.full((1, 2), size)).sum()).backward()
        skipped = take_step(Scaled(), scaler)
        assert skipped is not None
        optimizer.zero_grad()
        average.update(step, skipped)
        told.append(bool(skipped))
        assert torch.equal(average.model.weight, before) is told[-1]
    assert told == [False, True, False]
    assert take_step(optimizer, None) is None


# ------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("ema", "message"),
    [
        ({"decay": 1.0}, "x.yaml: training.ema.decay: is 1.0: input should be less than 1"),
        ({"decay": 1.5}, "training.ema.decay: is 1.5: input should be less than 1"),
        ({"decay": 0}, "training.ema.decay: is 0: input should be greater than 0"),
        ({"decay": -0.1}, "training.ema.decay: is -0.1: input should be greater than 0"),
        ({"every": 0}, "training.ema.every: is 0: input should be greater than or equal to 1"),
        ({"every": 1.5}, "training.ema.every: is 1.5: input should be a valid integer"),
        ({"warm_up": True}, "training.ema.warm_up: unknown key, did you mean 'warmup'?"),
        (True, "training.ema: is True, expected a section: give keys below it"),
    ],
)
def test_bad_settings_are_one_message(ema, message):
    with pytest.raises(UserError) as error:
        resolve([Layer("x.yaml", {"training": {"ema": ema}})])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_default_is_no_setting():
    off = resolve([Layer("x.yaml", {"training": {"ema": None}})]).config
    assert "ema" not in off.model_dump()["training"] and "ema" not in off.to_yaml()
    on = resolve([Layer("x.yaml", {"training": {"ema": {}}})]).config
    assert on.model_dump()["training"]["ema"] == {"decay": 0.9998, "warmup": True, "every": 1}
    assert resolve([Layer("x.yaml", on.model_dump())]).config == on


# ----------------------------------------------------------------------------------------------------------- runs


def words(home: Path, name: str, *more: str) -> list[str]:
    return [
        f"--output_dir={home}", f"--cache.dir={home / 'cache'}", "--no-wandb", f"--name={name}", "--teachers=[]",
        "--kd.type=baseline", "--model={name: cifar_resnet8}", "--data.train_size=120", "--data.batch_size=30",
        "--training.max_epochs=2", "--training.log_every=1", "--training.compare_with_baseline=false",
        "--training.learning_rate=0.01", "--evaluation.report=false", *more,
    ]  # fmt: skip


def folder_of(home: Path, name: str) -> Path:
    [folder] = home.glob(f"{name}-*")
    return folder


def weights(folder: Path, place: str) -> dict[str, Tensor]:
    return load_file(folder / place / "model.safetensors")


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run, `whole`, and of the same without an average, `plain`."""
    home = tmp_path_factory.mktemp("averages")
    train_kd.main(words(home, "whole", "--training.ema.every=2"))
    train_kd.main(words(home, "plain"))
    return home


def test_a_run_with_an_average_resumes_bit_for_bit(home, tmp_path, monkeypatch):
    original = run_folder.MetricsFile.append

    def cut(self, row):
        original(self, row)
        if row.get("train_step/step") == 7:
            raise KeyboardInterrupt

    more = words(tmp_path, "cut", "--training.ema.every=2", "--training.save_every_steps=3")
    monkeypatch.setattr(run_folder.MetricsFile, "append", cut)
    with pytest.raises(KeyboardInterrupt):
        train_kd.main(more)
    monkeypatch.setattr(run_folder.MetricsFile, "append", original)
    train_kd.main(more)
    found, whole = folder_of(tmp_path, "cut"), folder_of(home, "whole")
    rows, expected = (times_apart(read_metrics(path / "metrics.jsonl")) for path in (found, whole))
    assert rows == expected
    for place in ("student", "checkpoints/best/student", "checkpoints/latest/student", "checkpoints/latest/average"):
        assert equal(weights(found, place), weights(whole, place)), place
    latest = whole / "checkpoints" / "latest"
    assert not equal(weights(latest, "average"), weights(latest, "student"))


def test_the_student_is_trained_as_without_an_average(home):
    """And val/accuracy is its own."""
    whole, plain = (folder_of(home, name) for name in ("whole", "plain"))
    place = "checkpoints/latest/student"
    assert equal(weights(whole, place), weights(plain, place))
    rows, expected = (times_apart(read_metrics(path / "metrics.jsonl")) for path in (whole, plain))
    own = {name for row in rows for name in row if "/ema_" in name}
    assert own == {"val/ema_accuracy", "val/ema_auroc", "val/ema_loss_ce"}
    assert [{name: value for name, value in row.items() if name not in own} for row in rows] == expected
    assert "weights" not in json.loads((plain / "summary.json").read_text())
    assert not (plain / "checkpoints" / "latest" / "average").exists()


def scripted(monkeypatch, *accuracies: float) -> None:
    """Validation accuracies of the student and its average, epoch after epoch."""
    left = list(accuracies)

    def score(*_: Any, **__: Any) -> dict[str, float]:
        return {"accuracy": left.pop(0), "auroc": 0.5, "loss_ce": 1.0, "loss_total": 1.0}

    monkeypatch.setattr(train_kd.models, "score", score)


@pytest.mark.parametrize(
    ("accuracies", "epoch", "kind", "line"),
    [
        ((0.5, 0.4, 0.3, 0.6), 2, "average", "at the end of epoch 2 (training.ema), not those of the last step: b"),
        ((0.5, 0.4, 0.6, 0.3), 2, "student", "weights: those at the end of epoch 2, better on validation than their"),
        ((), 2, "average", "not those of the last step: there is no validation split to choose by"),
    ],
)
def test_the_better_by_validation_is_exported(tmp_path, monkeypatch, capsys, accuracies, epoch, kind, line):
    scripted(monkeypatch, *accuracies)
    more = [] if accuracies else ["--data.val_size=0"]
    train_kd.main(words(tmp_path, "chosen", "--training.ema={}", *more))
    assert line in capsys.readouterr().out
    folder = folder_of(tmp_path, "chosen")
    latest = folder / "checkpoints" / "latest"
    for place in ("student", "checkpoints/best/student"):
        assert equal(weights(folder, place), weights(latest, kind))
    assert not equal(weights(latest, "average"), weights(latest, "student"))
    summary = json.loads((folder / "summary.json").read_text())
    accuracy = max(accuracies, default=None)
    assert (summary["best_epoch"], summary["val_accuracy"], summary["best_val_accuracy"]) == (epoch, accuracy, accuracy)
    assert summary["weights"] == {"average": "average", "student": "last"}[kind]
    metrics = json.loads((folder / "student" / "metrics.json").read_text())
    assert metrics.get("val/accuracy") == accuracy and ("weights" in metrics) is (kind == "average")


def test_an_earlier_epoch_stays_the_best_whichever_weights_it_had():
    progress = Progress()
    for epoch, (student, average) in enumerate(((0.6, 0.6), (0.55, 0.6), (0.61, 0.2)), 1):
        row = {"epoch": epoch, "val/accuracy": student, "val/ema_accuracy": average, "val/loss_total": 2.0}
        assert progress.add_epoch(row, offset=0, skipped=0, averaged=True) is (epoch != 2)
        assert progress.waited == (epoch == 2) and progress.metrics == row
        if epoch == 2:
            best = {name: progress.best.get(name) for name in ("epoch", "val/accuracy", "val/loss_total", "weights")}
            assert best == {"epoch": 1, "val/accuracy": 0.6, "val/loss_total": None, "weights": "average"}
    assert progress.best == row


def test_an_average_without_an_update_is_refused(tmp_path):
    with pytest.raises(UserError, match="training.ema.every: is 9, but training has 8 steps, so nothing would be aver"):
        train_kd.main(words(tmp_path, "none", "--training.ema.every=9"))
