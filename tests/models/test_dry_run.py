"""The pass before training: what cannot run is said with the key to change, and nothing of the run changes."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train_kd
from kd_core.config import Config
from kd_core.data.dataset import Data, load_data
from kd_core.data.preprocess import Preprocess
from kd_core.data.views import Augmentation, Views
from kd_core.errors import UserError
from kd_core.loop.processes import create_accelerator
from kd_core.models import build as models
from kd_core.models import layer_features
from kd_core.models.layer_features import layers_of
from kd_core.models.network import Network as ImageNetwork
from kd_core.models.predict import Predictor
from kd_core.run.folder import read_metrics
from kd_core.teachers import dry_run
from kd_core.teachers.load import Reordered, Teacher
from kd_core.teachers.logits import TeacherLogits


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    config = Config.model_validate({"data": {"source": "digits", "train_size": 100}})
    return load_data(config.data, model_sizes=[32], cache_dir=tmp_path_factory.mktemp("cache"), show_progress=False)


class Network(nn.Module):
    """Logits [B,10] of images [B,3,32,32], or what `answer(logits, training)` makes of them."""

    def __init__(self, answer: Any = lambda logits, training: logits, body: nn.Module | None = None):
        super().__init__()
        self.body = body or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head, self.answer = nn.Linear(3, 10), answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.head(self.body(images)), self.training)


def fail(error: Exception) -> Any:
    def answer(logits: Tensor, training: bool) -> Tensor:
        raise error

    return answer


def settings(**sections: Any) -> Config:
    values: dict[str, Any] = {"data": {"source": "digits", "batch_size": 4}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return Config.model_validate(values)


def try_training(network: nn.Module, data: Data, config: Config, processes: int = 1, usual: int = 224) -> None:
    views = Views(Preprocess(32, 32, "bicubic", data.mean, data.std), 32, Augmentation(2, False))
    student = ImageNetwork(network, "net", Preprocess(32, 32, "bicubic", data.mean, data.std), views)
    predict = Predictor(create_accelerator("no"), config)
    if processes > 1:
        predict.accelerator = SimpleNamespace(  # type: ignore[assignment]
            num_processes=processes, device=torch.device("cpu"), autocast=nullcontext
        )
    dry_run.train_once(student, config, data, predict, dry_run.Subject("net", 32, usual))


@pytest.mark.parametrize("switch", ["standardize", "norm_temperature"])
def test_standardized_logits_of_two_classes_are_refused(data, switch):
    config = settings(kd={"type": "average", switch: True}, teachers=[{"model": "cifar_resnet8", "weights": "a.pt"}])
    layer_features.build_method(config, data, None, None, [], None)
    two = replace(data, num_classes=2)
    with pytest.raises(UserError, match=f"^kd.{switch}: with two classes .* teach nothing; leave it out$"):
        layer_features.build_method(config, two, None, None, [], None)


BATCH_NORM = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten())


@pytest.mark.parametrize(
    ("network", "sections", "words"),
    [
        (
            Network(body=BATCH_NORM),
            {"data": {"batch_size": 1}},
            ["data.batch_size: 1 is one image per step, too few for BatchNorm in model.name 'net'", "at least 2"],
        ),
        (
            Network(lambda logits, training: (logits, logits)),
            {},
            ["model.name 'net': gives a tuple of 2 (a tensor [4, 10] of float32, ", "in training", "model.args"],
        ),
        (
            Network(lambda logits, training: {"logits": logits} if training else logits),
            {},
            ["gives a dict of 1 (logits: a tensor [4, 10] of float32) in training"],
        ),
        (Network(lambda logits, training: [logits] * 6), {}, ["gives a list of 6 (", ", ...)"]),
        (
            Network(lambda logits, training: logits[:, :7]),
            {},
            ["gives a tensor [4, 7] of float32 in training, one tensor of logits [4, 10] is needed"],
        ),
        (Network(lambda logits, training: logits[..., None]), {}, ["gives a tensor [4, 10, 1]"]),
        (Network(lambda logits, training: logits.argmax(1)), {}, ["gives a tensor [4] of int64"]),
        (
            Network(lambda logits, training: logits if training else logits.squeeze(0)),
            {},
            ["gives a tensor [10] of float32 in evaluation, one tensor of logits [1, 10]"],
        ),
        (
            Network(fail(RuntimeError("Kernel size can't be greater than actual input size"))),
            {},
            ["cannot be trained on images of 32 x 32 pixels: RuntimeError: Kernel size", "test_dry_run.py, line",
             "it was made for 224: try model.img_size=224"],
        ),
        (Network(fail(AssertionError())), {}, ["32 x 32 pixels: AssertionError (test_dry_run.py"]),
        (
            Network(fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"))),
            {},
            ["4 images of 32 x 32 pixels do not fit into the device's memory", "data.batch_size (now 4)",
             "model.img_size", "training.mixed_precision=bf16"],
        ),
        (
            Network(fail(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"))),
            {},
            ["do not fit into the device's memory"],
        ),
        (
            Network(fail(RuntimeError("max_unpool does not have a deterministic implementation"))),
            {},
            ["training.deterministic=false"],
        ),
        (
            Network(fail(NotImplementedError("\"erfinv\" not implemented for 'BFloat16'"))),
            {},
            ["training.mixed_precision=no"],
        ),
        (Network(lambda logits, training: logits.detach()), {}, ["cannot be trained", "does not require grad"]),
        (
            Network(lambda logits, training: (logits.sigmoid(), logits.sigmoid().mul_(2))[0].exp_().sigmoid_()),
            {},
            ["cannot be trained", "modified by an inplace operation"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_run_names_the_key_to_change(network, sections, words, data):
    with pytest.raises(UserError) as caught:
        try_training(network, data, settings(**sections))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_network_that_fails_at_its_own_size_is_not_said_to_need_another(data):
    with pytest.raises(UserError, match=r"the size that it was made for: check model\.args"):
        try_training(Network(fail(ValueError("odd"))), data, settings(), usual=32)


def test_of_several_processes_each_tries_its_share_of_the_batch(data):
    with pytest.raises(UserError, match=r"^data.batch_size: 2 over 2 processes is one image per step.* at least 4$"):
        try_training(Network(body=BATCH_NORM), data, settings(data={"batch_size": 2}), processes=2)
    try_training(Network(body=BATCH_NORM), data, settings(data={"batch_size": 4}), processes=2)


def test_weights_without_part_in_the_logits_are_for_one_process(data):
    network = Network()
    network.more = nn.Linear(3, 3)
    try_training(network, data, settings())
    with pytest.raises(UserError, match=r"2 weight\(s\), such as 'more.weight', have no part in the logits"):
        try_training(network, data, settings(), processes=2)


def test_the_pass_is_in_the_runs_memory_format_and_size_of_batch(data):
    seen = []

    class Looking(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((len(images), images.is_contiguous(memory_format=torch.channels_last), self.training))
            return images.mean((2, 3))

    for channels_last in (True, False):
        seen.clear()
        try_training(Network(body=Looking()), data, settings(training={"channels_last": channels_last}))
        assert seen == [(4, channels_last, True), (1, True, False)] or (not channels_last and seen[0][1] is False)
        assert [count for count, *_ in seen] == [4, 1]


def generators() -> list[Any]:
    return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]


def test_random_generators_are_restored(data):
    class Drawing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) + torch.rand(3) + np.random.rand() + random.random()

    network = Network(body=Drawing())
    found = []
    for tried in (False, True):
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        if tried:
            try_training(network, data, settings())
        found.append(generators())
    assert found[0] == found[1]


# ---------------------------------------------------------------------------------------------------- teachers


def teacher_of(network: nn.Module, data: Data) -> Teacher:
    views = Views(Preprocess(24, 24, "bicubic", data.mean, data.std), 32, Augmentation(2, False))
    return Teacher("net", 10, 1, "", "clean", views, lambda: network, index=3)


@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (fail(IndexError("too small")), ["cannot run on images of 24 x 24 pixels: IndexError", "teachers[3].img_size"]),
        (lambda logits, training: (logits, logits), ["gives a tuple of 2", "teachers[3].args"]),
        (lambda logits, training: logits[:, :5], ["gives a tensor [2, 5]", "logits [2, 10]"]),
    ],
)
def test_a_teacher_that_cannot_answer_is_named(answer, words, reordered, data):
    network: nn.Module = Network(answer)
    if reordered:
        network = Reordered(network, list(range(10)))
    teachers = TeacherLogits([teacher_of(network, data)], Predictor(create_accelerator("no"), settings()))
    with pytest.raises(UserError) as caught:
        teachers._network(0)
    assert str(caught.value).startswith("teachers[3] 'net': ")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_teacher_sees_two_images_once(data):
    sizes = []

    class Looking(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append((len(images), images.shape[-1], self.training))
            return images.mean((2, 3))

    predict = Predictor(create_accelerator("no"), settings())
    teachers = TeacherLogits([teacher_of(Network(body=Looking()), data)], predict)
    assert teachers._network(0) is teachers._network(0)
    assert sizes == [(2, 24, False)]


def test_a_teacher_in_another_class_order_gives_its_features_and_its_last_layer_in_that_order(data):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    network = models.create_model("cifar_resnet8", num_classes=10).eval()
    kd = {"type": "average", "features": [{"loss": "cat_kd"}, {"loss": "mse"}]}
    config = settings(kd=kd, teachers=[{"weights": "a.pt"}])
    outputs = TeacherLogits([teacher_of(Reordered(network, order), data)], Predictor(create_accelerator("no"), config))
    outputs.members[0].index = 0
    layers = layers_of(config.kd, 1)
    outputs.give_features(layers)
    [(weight, bias)] = outputs.classifiers
    logits, (*_, embedding) = outputs._source(0)(torch.rand(4, 3, 24, 24))
    given = torch.nn.functional.linear(embedding, weight, bias)
    torch.testing.assert_close(given, logits[:, order], rtol=1e-2, atol=1e-3)  # rounded to fp16
    assert not torch.allclose(given, logits, rtol=1e-2, atol=1e-3)


# ------------------------------------------------------------------------------------------------- the whole run


def words_of(home: Path, *more: str) -> list[str]:
    return [
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}", "--no-wandb", "--teachers=[]",
        "--kd.type=baseline", "--training.compare_with_baseline=false", "--training.max_epochs=1",
        "--data.train_size=120", "--data.batch_size=30", "--evaluation.report=false", "--training.log_every=1", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("check", [[], ["--check"]])
@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--model={name: inception_v3, img_size: 32}"], r"model.name 'inception_v3': .*299: try model.img_size=299"),
        (["--model={name: resnet18, img_size: 32}", "--data.batch_size=1"], "data.batch_size: 1 is one image per step"),
        (
            ["--model={name: inception_v3, img_size: 75, args: {aux_logits: true}}", "--data.batch_size=2"],
            r"model.name 'inception_v3': ",
        ),
    ],
)
def test_networks_that_cannot_be_trained_are_refused_before_training(more, text, check, tmp_path, monkeypatch):
    monkeypatch.setattr(train_kd, "run", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(UserError, match=text):
        train_kd.main(words_of(tmp_path, *more, *check))


def test_so_are_those_of_teachers_that_are_trained_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr(train_kd, "run", lambda *a, **k: pytest.fail("training began"))
    for batch_size in (1, 2):
        (tmp_path / f"{batch_size}.yaml").write_text(f"data: {{batch_size: {batch_size}}}")
    teachers = (
        f"--teachers=[{{model: resnet18, img_size: 32, train: {tmp_path / '1.yaml'}}}, "
        f"{{model: inception_v3, img_size: 32, train: {tmp_path / '2.yaml'}}}]"
    )
    with pytest.raises(UserError) as caught:
        train_kd.main(words_of(tmp_path, "--kd.type=average", "--model={name: cifar_resnet8}", teachers))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("teachers[0].train: data.batch_size: 1 is one image per step, too few for BatchNorm in ")
    assert lines[1].startswith("teachers[1].model 'inception_v3': cannot be trained on images of 32 x 32 pixels")
    assert "teachers[1].img_size=299" in lines[1]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_is_bit_for_bit_that_without_the_pass(tmp_path, monkeypatch, resumed):
    """With dropout, BatchNorm, a teacher on demand, and a teacher whose network is asked in every step."""
    recipe = tmp_path / "t.yaml"
    recipe.write_text("data: {batch_size: 20}\ntraining: {max_epochs: 2, learning_rate: 0.01}")
    rows, weights = [], []
    for tried in (True, False):
        home = tmp_path / str(tried)
        if not tried:
            monkeypatch.setattr(dry_run, "train_once", lambda *a: None)
            monkeypatch.setattr(dry_run, "check_teacher", lambda *a: None)
        words = words_of(
            home, "--kd.type=average", "--model={name: resnet10t, img_size: 32, args: {drop_rate: 0.5}}",
            f"--teachers=[{{model: cifar_resnet8, train: {recipe}}}]", "--cache.mode=off", "--data.train_size=300",
            "--training.max_epochs=2", "--name=tried",
        )  # fmt: skip
        if resumed:
            epochs = train_kd.epochs_of(words)
            next(epochs)
            with pytest.raises(KeyboardInterrupt):
                epochs.throw(KeyboardInterrupt())
        train_kd.main(words)
        [folder] = (home / "runs").glob("tried-*")
        found = read_metrics(folder / "metrics.jsonl")
        timed = ("time", "perf/")
        rows.append([{key: row[key] for key in row if not any(word in key for word in timed)} for row in found])
        weights.append(models.load_export(folder / "student").model.state_dict())
    assert rows[0] == rows[1] and len(rows[0]) > 20
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
