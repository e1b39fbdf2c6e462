"""Labels that are wrong on purpose, classes of unlike size, and the order in which an epoch shows images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import kd_methods
from kd_core.config import DataConfig, LabelNoiseConfig, Layer, resolve
from kd_core.data.class_weights import class_weights
from kd_core.data.dataset import Data, load_data
from kd_core.data.label_noise import with_noise
from kd_core.data.plan import EpochPlan, Sampler, epoch_order
from kd_core.data.views import Augmentation
from kd_core.errors import UserError
from kd_methods import StudentOutput, TeacherOutputs

CPU = torch.device("cpu")
LABELS = torch.arange(1000) % 10


def noise(**settings) -> LabelNoiseConfig:
    return LabelNoiseConfig.model_validate(settings)


def digits(tmp_path, **settings) -> Data:
    config = DataConfig.model_validate({"source": "digits", **settings})
    return load_data(config, model_sizes=[8], cache_dir=tmp_path, show_progress=False)


# --------------------------------------------------------------------------------------------------- label noise


def test_of_each_class_a_share_of_labels_is_wrong():
    rows = torch.arange(0, 1000, 2)  # of the even classes
    noisy = with_noise(LABELS, rows, noise(rate=0.3), 10, seed=0)
    changed = (noisy != LABELS).nonzero().flatten()
    assert torch.isin(changed, rows).all()
    assert LABELS[changed].bincount(minlength=10).tolist() == [30, 0] * 5
    # any other class, all alike: 150 labels over 9 classes each
    steps = ((noisy - LABELS)[changed] % 10).bincount(minlength=10)
    assert steps[0] == 0 and steps[1:].min() >= 5 and steps[1:].max() <= 32


def test_pair_noise_gives_the_next_class():
    noisy = with_noise(LABELS, torch.arange(1000), noise(kind="pair", rate=0.25), 10, seed=0)
    steps = (noisy - LABELS) % 10
    assert set(steps.tolist()) == {0, 1} and steps.sum() == 250


def test_noise_depends_on_the_seed_and_a_larger_rate_adds_to_a_smaller():
    def of(rate: float, seed: int) -> Tensor:
        return with_noise(LABELS, torch.arange(1000), noise(rate=rate), 10, seed)

    assert of(0.2, 0).equal(of(0.2, 0)) and not of(0.2, 0).equal(of(0.2, 1))
    small, large = of(0.2, 0), of(0.4, 0)
    assert small[small != LABELS].equal(large[small != LABELS])


def test_validation_and_test_keep_their_labels(tmp_path):
    clean = digits(tmp_path)
    noisy = digits(tmp_path, label_noise={"rate": 0.4})
    differ = noisy.train.labels != clean.train.labels
    assert differ.sum() == pytest.approx(0.4 * len(clean.train), abs=5) and torch.isin(
        differ.nonzero().flatten(), clean.train.rows
    ).all()
    for before, after in ((clean.val, noisy.val), (clean.test(), noisy.test())):
        assert before and after and after.labels.equal(before.labels) and after.rows.equal(before.rows)
    assert clean.fingerprint == noisy.fingerprint and noisy.truth.labels.equal(clean.train.labels)
    assert f"train: {int(differ.sum())} labels are wrong on purpose" in "".join(noisy.notes)


def test_a_share_of_no_label_is_refused():
    with pytest.raises(UserError, match=r"data.label_noise.rate: 0.001 of each class is no label, of 100 images"):
        with_noise(LABELS, torch.arange(1000), noise(rate=0.001), 10, seed=0)
    with pytest.raises(UserError, match=r"data.label_noise.rate: is 1.0"):
        resolve([Layer("x.yaml", {"data": {"label_noise": {"rate": 1.0}}})])


# ----------------------------------------------------------------------------------------------- the sampler


def plan(sampler: Sampler, rank: int = 0, world_size: int = 1, **changes) -> EpochPlan:
    settings = {"seed": 0, "epoch": 3, "batch_size": 20, "augmentation": Augmentation(4, True), **changes}
    return EpochPlan(sampler, CPU, rank=rank, world_size=world_size, **settings)


UNEVEN = torch.tensor([0] * 70 + [1] * 20 + [3] * 10)  # no class 2
ROWS = torch.arange(100) * 3


def test_a_balanced_epoch_has_every_class_equally_often():
    rows, keys = (part.flatten() for part in Sampler(ROWS, UNEVEN).order(0, 5, batch=20, processes=1))
    assert len(rows) == 100
    counts = UNEVEN[rows // 3].bincount(minlength=4)
    assert counts[2] == 0 and counts.sum() == 100 and counts[counts > 0].max() - counts[counts > 0].min() <= 1
    assert len(keys.unique()) == 100  # each showing has a view of its own
    shown = rows.bincount(minlength=300)[ROWS]
    assert shown[:70].max() == 1  # of a large class some images, each once
    for images in (shown[70:90], shown[90:]):  # of small ones all, about equally often
        assert images.min() >= 1 and images.max() - images.min() <= 1
    assert not rows.equal(Sampler(ROWS, UNEVEN).order(0, 6, batch=20, processes=1)[0].flatten())


def test_classes_come_alike_throughout_an_epoch():
    """What chooses the images of large classes must not order the epoch, too."""
    labels = torch.arange(5).repeat_interleave(torch.tensor([500, 250, 120, 60, 30]))
    rows, _ = Sampler(torch.arange(960), labels).order(0, 1, batch=60, processes=1)
    for half in rows.flatten().chunk(2):
        counts = labels[half].bincount(minlength=5)
        assert (counts - 96).abs().max() <= 27, counts  # 4 deviations of 192 balls in two halves


def test_an_image_that_comes_again_has_another_view():
    whole = plan(Sampler(ROWS, UNEVEN)).whole(CPU)
    views: dict[int, list[int]] = {}
    for row, view in zip(whole.rows.flatten().tolist(), whole.ids.flatten().tolist(), strict=True):
        views.setdefault(row, []).append(view)
    several = [found for found in views.values() if len(found) > 1]
    assert several and sum(len(set(found)) > 1 for found in several) >= 0.9 * len(several)


def test_uniform_order_is_as_it_was():
    rows, keys = Sampler(ROWS).order(1, 2, batch=30, processes=2)
    assert rows.flatten().equal(epoch_order(1, 2, ROWS)[:90]) and keys.equal(rows) and rows.shape == (3, 2, 15)


def test_processes_share_a_balanced_batch():
    whole, halves = plan(Sampler(ROWS, UNEVEN)), [plan(Sampler(ROWS, UNEVEN), rank, 2) for rank in range(2)]
    for step in range(5):
        for name in ("rows", "ids"):
            parts = [getattr(half.batch(step, CPU), name) for half in halves]
            assert torch.cat(parts).equal(getattr(whole.batch(step, CPU), name))


# ---------------------------------------------------------------------------------------------- class weights


def test_balanced_weights_are_one_on_average():
    weights = class_weights("balanced", torch.tensor([0, 0, 0, 1]), ["a", "b"])
    assert weights is not None and weights.tolist() == pytest.approx([4 / 6, 2.0])


def test_class_weights_scale_the_label_loss():
    """Of hard labels by their class; of soft ones term by term."""
    generator, weights = torch.Generator().manual_seed(0), torch.tensor([0.5, 2.0, 0.0])
    student, teachers = torch.randn(6, 3, generator=generator), torch.randn(2, 6, 3, generator=generator)
    labels, log_p = torch.tensor([0, 1, 2, 0, 1, 2]), student.log_softmax(1)
    method = kd_methods.build({"type": "average"}, num_classes=3, class_weights=weights)
    for given in (labels, torch.nn.functional.one_hot(labels, 3).float() * 0.7 + 0.1):
        hard = given if given.ndim == 2 else torch.nn.functional.one_hot(given, 3).float()
        _, metrics = method(StudentOutput(student), TeacherOutputs(teachers), given, 1.0)
        assert metrics["loss_ce"] == pytest.approx(float(-(weights * hard * log_p).sum(1).mean()), rel=1e-5)
    plain = kd_methods.build({"type": "average"}, num_classes=3)
    ones = kd_methods.build({"type": "average"}, num_classes=3, class_weights=torch.ones(3))
    inputs = StudentOutput(student), TeacherOutputs(teachers), labels, 1.0
    assert plain(*inputs)[0] == ones(*inputs)[0]
    assert "_class_weights" not in method.state_dict()


def test_mistakes_are_said_before_training(tmp_path):
    with pytest.raises(UserError, match="has 2 factors, and the data have 3 classes"):
        class_weights([1.0, 2.0], LABELS % 3, ["a", "b", "c"])
    for key, find in (
        ("training.class_weights", lambda: class_weights("balanced", LABELS % 2, ["a", "b", "c"])),
        ("data.sampler", lambda: _empty_class(tmp_path)),
    ):
        with pytest.raises(UserError, match=f"{key}: balanced: no training image is of class 'c'"):
            find()
    with pytest.raises(UserError, match="training.class_weights: .*weighs no class"):
        resolve([Layer("x.yaml", {"training": {"class_weights": [0.0, 0.0]}})])
    with pytest.raises(ValueError, match=r"class_weights: have shape \(2,\); must be \[3\]"):
        kd_methods.build({"type": "average"}, num_classes=3, class_weights=torch.ones(2))


def _empty_class(tmp_path) -> None:
    from PIL import Image

    for name, count in (("a", 4), ("b", 4), ("c", 0)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16), (40 * number, 0, 200)).save(tmp_path / "photos" / name / f"{number}.png")
    settings = {"source": "imagefolder", "path": str(tmp_path / "photos"), "sampler": "balanced"}
    load_data(DataConfig.model_validate(settings), model_sizes=[16], cache_dir=tmp_path, show_progress=False)


def test_defaults_are_no_settings():
    dumped = resolve([Layer("x.yaml", {})]).config.model_dump()
    assert not {"label_noise", "sampler"} & dumped["data"].keys() and "class_weights" not in dumped["training"]
    assert "test_epochs" not in dumped["evaluation"]
