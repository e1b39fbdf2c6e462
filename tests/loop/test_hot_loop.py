"""What a training step asks of the host and of the device, counted instead of timed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from method_variants import SCOPED, method_for
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import train_kd
from kd_core.config import Config
from kd_core.data.dataset import Data, Split, load_data
from kd_core.data.image_store import ImageStore
from kd_core.data.plan import Batch, EpochPlan, Sampler
from kd_core.data.preprocess import Preprocess
from kd_core.data.recipes import Recipe
from kd_core.data.views import Augmentation, Views, random_bits
from kd_core.loop.meter import Meter
from kd_core.loop.processes import create_accelerator
from kd_core.models.predict import Images, Predictor
from kd_core.teachers.cache import CachedTeacher, open_store
from kd_methods import StudentOutput, TeacherOutputs

# What makes the host wait for a GPU: reading a value, or a result whose size depends on values.
WAITS = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select",
    "aten::_unique2", "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave.Tensor",
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
LARGEST_FORWARD = 40  # dispatcher calls that are no views
LARGEST_OF_AEKD = 120  # it solves a small problem
CUDA = torch.device("cuda", 0)


class Calls(TorchDispatchMode):
    """The names of all dispatcher calls within the block, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not is_view:
            by_mask = func.name() == "aten::index.Tensor" and any(
                index is not None and index.dtype == torch.bool for index in args[1]
            )
            self.names.append("aten::nonzero" if by_mask else func.name())
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> list[str]:
        return [name for name in self.names if name in WAITS]


def method_and_inputs(name: str, scope: str | None, batch: int, device: torch.device | str = "cpu"):
    method = method_for({"type": name} | ({"scope": scope} if scope else {}), 3).to(device)
    student = torch.randn(batch, 100, device=device, requires_grad=True)
    labels = torch.randint(0, 100, (batch,), device=device)
    return method, StudentOutput(student), TeacherOutputs(torch.randn(3, batch, 100, device=device)), labels


@pytest.mark.parametrize(("name", "scope"), SCOPED)
def test_a_loss_takes_few_calls_whatever_the_batch_and_never_waits(name, scope, record_property):
    counts = set()
    for batch in (2, 16, 1024):
        method, *inputs = method_and_inputs(name, scope, batch)
        with Calls() as forward:
            loss, _ = method(*inputs)
        with Calls() as backward:
            loss.backward()
        assert not forward.waits and not backward.waits
        counts.add((len(forward.names), len(backward.names)))
    [(calls, of_backward)] = counts
    record_property("forward", calls)
    record_property("backward", of_backward)
    print(f"{name}, scope {scope}: {calls} calls forward, {of_backward} backward")
    assert calls <= (LARGEST_OF_AEKD if name == "aekd" else LARGEST_FORWARD)


@pytest.mark.parametrize(("name", "scope"), SCOPED)
def test_on_a_gpu_a_loss_and_its_metrics_never_come_to_the_host(name, scope):
    """Tensors that pretend to lie on a GPU: reading one of their values is an error, and so is a mix with the host."""
    with FakeTensorMode():
        method, *inputs = method_and_inputs(name, scope, 16, CUDA)
        loss, metrics = method(*inputs)
        meter = Meter()
        for step in range(2):
            meter.add(step, {"loss": loss, **metrics})
        assert {value.device for value in (loss, *metrics.values())} == {CUDA}
        with pytest.raises(DataDependentOutputException):
            meter.reading()  # and this is where it waits


def test_the_simulated_gpu_detects_waits():
    with FakeTensorMode():
        values = torch.randn(8, device=CUDA)
        with pytest.raises(DataDependentOutputException):
            bool(values.sum() > 0)
        with pytest.raises(DynamicOutputShapeException):
            values[values > 0]


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (32, 48)])
def test_on_a_gpu_views_are_made_there(stored, size):
    views = Views(Preprocess(size, size, "bicubic", (0.5,) * 3, (0.2,) * 3), stored, Augmentation(4, True))
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.zeros(8, stored, stored, 3, dtype=torch.uint8, device=CUDA)
        ids = torch.arange(8, device=CUDA)
        for view in (views.train(images, ids, channels_last=True), views.clean(images)):
            assert view.device == CUDA and view.shape == (8, 3, size, size)


@pytest.mark.parametrize(
    ("augment", "most"),
    [({}, 400), ({"resized_crop": {}, "erasing": {}}, 500), ({"color_jitter": {"hue": 0.1}, "cutout": 4}, 900)],
)
def test_a_recipe_takes_few_calls_whatever_the_batch_and_never_waits(augment, most):
    """Each operation is computed for all images that drew it; the host knows which these are without asking."""
    values = {"data": {"source": "digits"}, "augment": {**augment, "randaugment": {}, "mixup": {}, "cutmix": {}}}
    images = torch.zeros(2048, 16, 16, 3, dtype=torch.uint8)
    rows = torch.arange(2048)
    split = Split(images, rows % 10, rows, "train", "f00d")
    data = Data(split, None, 10, [], (0.5,) * 3, (0.2,) * 3, 16, [], "f00d", split.labels.numpy(), list)
    recipe, counts = Recipe(Config.model_validate(values), data), set()
    store = ImageStore(split, torch.device("cpu"), on_device="host")
    for batch in (512, 1024, 2048):
        draws = recipe.draws(rows[:batch], random_bits(0, 1, rows[:batch]))
        with Calls() as calls:
            recipe.show(store, draws)
        assert not calls.waits
        counts.add(len(calls.names))
    [count] = counts
    print(f"{augment}: {count} calls")
    assert count <= most


def plan_of(rows: int, **changes) -> EpochPlan:
    settings = {"seed": 0, "epoch": 3, "batch_size": 10, "rank": 0, "world_size": 1, **changes}
    return EpochPlan(Sampler(torch.arange(rows)), torch.device("cpu"), augmentation=Augmentation(4, True), **settings)


def test_a_step_only_slices_its_plan():
    plan = plan_of(100)
    with Calls() as calls:
        batch = plan.batch(3, torch.device("cpu"))
    assert not calls.names and len(batch.rows) == 10


def test_logits_from_a_warm_cache_take_a_handful_of_calls(tmp_path):
    store = open_store(tmp_path, {}, views=162, rows=100, classes=7, about={}, max_gb=1.0)
    store.write(torch.arange(16_200), torch.zeros(16_200, 7).half())
    cached = CachedTeacher(store, per_view=True, notify=print)
    counts = set()
    for size in (2, 50):
        rows = torch.arange(size)[None]
        cached.begin_epoch(Batch(rows, rows, rows))
        with Calls() as calls:
            cached(0, torch.device("cpu"), lambda positions: pytest.fail("computed"))
        counts.add(len(calls.names))
    assert counts == {1}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the C library whose habits these are")
def test_on_a_cpu_large_tensors_take_pages_that_were_freed_before():
    code = """
import resource, torch
from kd_core.loop.processes import create_accelerator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(2**24).add_(1)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
create_accelerator("no")
print(before, min(faults() for _ in range(10)))  # the heap grows in the first rounds, by as much as it has gaps
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert usual > 3 * 2**14 and kept <= 100


# ------------------------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("fits", [64, 17, 1])
def test_evaluation_takes_the_largest_batches_that_fit(fits, tmp_path):
    """A network that runs out of memory; what did fit is remembered for the next split."""

    class Narrow(nn.Module):
        sizes: ClassVar[list[int]] = []

        def forward(self, images: Tensor) -> Tensor:
            self.sizes.append(len(images))
            if len(images) > fits:
                raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
            return images.flatten(1)[:, :10]

    config = Config.model_validate({"data": {"source": "digits"}, "evaluation": {"batch_size": 64}})
    data = load_data(config.data, model_sizes=[32], cache_dir=tmp_path, show_progress=False)
    images = Images(data.train, torch.device("cpu"), "auto")
    views = Views(Preprocess(32, 32, "bicubic", data.mean, data.std), 32, Augmentation(2, False))
    predict = Predictor(create_accelerator("no"), config)
    logits = predict(Narrow(), images, views)
    once = views.clean(images.store.gather(images.rows)[0]).flatten(1)[:, :10]
    assert torch.equal(logits, once)
    Narrow.sizes.clear()
    predict(Narrow(), images, views)
    assert Narrow.sizes[0] == max(Narrow.sizes) <= fits


# --------------------------------------------------------------------------------------------------- the whole loop


class Watched(Calls):
    """Waits between the first step of an epoch and its end, outside the meter's readings."""

    def __init__(self) -> None:
        super().__init__()
        self.stepping = False
        self.found: list[str] = []
        self.steps = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = len(self.names)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.stepping and self.names[before:] and self.names[-1] in WAITS:
            frame = sys._getframe()
            callers = []
            while frame is not None:
                callers.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                frame = frame.f_back
            self.found.append(f"{self.names[-1]} from {' < '.join(callers[1:6])}")
        return result


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--cache.mode=fixed"],
        ["--training.clip=1", "--training.optimizer=sgd", "--training.ema.every=2"],
        ["--training.skip_nonfinite=5", "--training.optimizer=sgd", "--training.ema={}"],
        ["--augment={randaugment: {}, erasing: {}}", "--cache.mode=off"],
    ],
    ids=str,
)
def test_no_step_waits_between_log_points(tmp_path, monkeypatch, digits_teachers, more):
    """Views, cached teachers, loss, metrics, optimizer, progress bar: on a GPU any of these calls would be a wait."""
    common = [
        "--no-wandb", f"--cache.dir={tmp_path / 'cache'}", "--data.train_size=200", "--data.batch_size=20",
        "--training.compare_with_baseline=false", "--evaluation.report=false", "--model={name: cifar_resnet8}",
    ]  # fmt: skip
    folder = digits_teachers[0]
    watched = Watched()

    def around(owner, name: str, stepping: bool | None) -> None:
        original: Callable = getattr(owner, name)

        def wrapped(*args, **options):
            before, watched.stepping = watched.stepping, bool(stepping)
            watched.steps += name == "set_learning_rate"
            try:
                return original(*args, **options)
            finally:
                watched.stepping = before if stepping is None else stepping

        monkeypatch.setattr(owner, name, wrapped)

    around(train_kd, "set_learning_rate", True)  # the first thing of a step, after which all is watched
    around(Meter, "reading", None)  # the log point, which may wait
    around(Meter, "epoch", False)  # the end of an epoch
    words = [
        f"--teachers=[{{weights: {folder}}}, {{weights: {folder}, view: clean}}]", "--kd.type=dynamic",
        "--training.log_every=4", "--training.max_epochs=2", f"--output_dir={tmp_path / 'runs'}", *more,
    ]  # fmt: skip
    train_kd.main([*common, *words])  # fills the cache: what a teacher computes is looked for on the host
    watched.steps = 0
    with watched:
        train_kd.main([*common, *words, "--fresh"])
    assert watched.steps == 20
    assert watched.found == []
