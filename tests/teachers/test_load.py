"""Teachers as their entries describe them: what contradicts the weights is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kd_core import config
from kd_core.data.dataset import Data, load_data
from kd_core.errors import UserError
from kd_core.evaluation.teacher_check import _require_above_chance
from kd_core.models import build as models
from kd_core.teachers import load as teachers


def settings(folder: Path, **entry: object) -> config.Config:
    """A run with one teacher."""
    values = {
        "cache": {"dir": str(folder / "cache")},
        "data": {"source": "digits"},
        "kd": {"type": "average"},
        "teachers": [entry],
    }
    return config.resolve([config.Layer("test", values)]).config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    own = settings(tmp_path_factory.mktemp("data"), weights="none")
    return load_data(own.data, model_sizes=[32], cache_dir=own.cache.folder, show_progress=False)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """A vision transformer with random weights, for 32 pixels."""
    folder, args = tmp_path_factory.mktemp("export") / "vit", {"patch_size": 16}
    model = models.create_model("test_vit", num_classes=10, img_size=32, args=args)
    preprocess = models.preprocess_of(model, img_size=32)
    models.export(model, folder, architecture="test_vit", preprocess=preprocess, model_args=args, num_classes=10,
                  class_names=data.class_names)  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"img_size": 64}, r"teachers\[0\].img_size: is 64, but .*vit holds a network for 32 pixels; leave it out"),
        ({"model": "test_vit", "img_size": 64}, r"teachers\[0\].img_size: is 64"),
        ({"args": {"patch_size": 8}}, r"teachers\[0\].args: is {'patch_size': 8}, but .* with {.*'patch_size': 16"),
        ({"args": {"depth": 3}}, r"teachers\[0\].args: is {'depth': 3}, but"),
        ({"model": "cifar_resnet8"}, r"teachers\[0\].model: is 'cifar_resnet8', but .* holds a 'test_vit'"),
        ({"stem": "cifar"}, r"teachers\[0\].model 'test_vit': has no cifar stem"),
    ],
)
def test_settings_that_an_export_contradicts_are_refused(tmp_path, data, export, entry, message):
    run = settings(tmp_path, weights=str(export), **entry)
    with pytest.raises(UserError, match=message):
        teachers.load(run.teachers[0], 0, data, run)


def test_settings_that_an_export_agrees_with_may_stand_beside_it(tmp_path, data, export):
    entry = {"model": "test_vit", "img_size": 32, "args": {"patch_size": 16}}
    run = settings(tmp_path, weights=str(export), **entry)
    assert teachers.load(run.teachers[0], 0, data, run).name == "test_vit"


def test_a_stem_that_an_export_lacks_is_refused(tmp_path, data):
    model = models.create_model("resnet18", num_classes=10)
    models.export(model, tmp_path / "resnet", architecture="resnet18", preprocess=models.preprocess_of(model),
                  model_args={}, num_classes=10, class_names=data.class_names)  # fmt: skip
    run = settings(tmp_path, weights=str(tmp_path / "resnet"), stem="cifar")
    with pytest.raises(UserError, match=r"teachers\[0\].stem: is 'cifar', but .*resnet holds a 'resnet18'"):
        teachers.load(run.teachers[0], 0, data, run)


def test_images_are_stored_for_the_size_that_an_export_has(tmp_path, export):
    """Whatever stands beside it, such as a network's usual 160 pixels."""
    for entry in ({}, {"model": "test_vit"}, {"model": "test_vit", "img_size": 64}):
        assert teachers.input_sizes(settings(tmp_path, weights=str(export), **entry)) == [32]


def test_a_weak_export_is_not_advised_another_size(tmp_path, data, export):
    run = settings(tmp_path, weights=str(export))
    teacher = teachers.load(run.teachers[0], 0, data, run)
    for has_own_size in (True, False):
        teacher.has_own_size = teacher.has_own_size and has_own_size
        with pytest.raises(UserError, match="near chance") as refusal:
            _require_above_chance([teacher], [{"accuracy": 0.1}, {}], torch.arange(100) % 10, None)
        assert ("img_size" in str(refusal.value)) is not has_own_size
