"""What the cache keeps of a teacher's features besides rows: found again as it was, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kd_core.config import CacheConfig, Config, TeacherConfig
from kd_core.errors import UserError
from kd_core.models import build as models
from kd_core.teachers import cache
from kd_core.teachers.kept_features import FeatureFacts, KeptFacts
from kd_core.teachers.load import Teacher, _from_timm

SHAPES: dict[Any, tuple[int, ...]] = {-1: (6, 4, 4), "0": (9, 6), 0: (3, 8, 8), "embedding": (6,)}


def teacher_of(digest: str = "a", size: int = 32, classes: int = 5) -> Teacher:
    views: Any = SimpleNamespace(size=size)
    return Teacher("net", classes, 1, digest, "clean", views, None, index=2)


def kept(home: Path, **changes: Any) -> KeptFacts:
    return KeptFacts(teacher_of(**changes), CacheConfig(dir=str(home)))


def facts(*layers: Any, head: bool = False) -> FeatureFacts:
    drawn = torch.Generator().manual_seed(0)
    classifier = (torch.rand(5, 6, generator=drawn), torch.rand(5, generator=drawn)) if head else None
    return FeatureFacts("teachers[2] 'net'", list(layers), [SHAPES[layer] for layer in layers], classifier)


def assert_equal(found: FeatureFacts | None, expected: FeatureFacts) -> None:
    assert found and replace(found, classifier=None) == replace(expected, classifier=None)
    assert (found.classifier is None) == (expected.classifier is None)
    for ours, theirs in zip(found.classifier or (), expected.classifier or (), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_what_several_runs_have_found_is_kept_together(tmp_path):
    assert kept(tmp_path).find([-1], []) is None
    kept(tmp_path).add(facts("0", -1), [])
    assert_equal(kept(tmp_path).find([-1, "0"], []), facts(-1, "0"))
    assert kept(tmp_path).find([0], []) is None and kept(tmp_path).find([-1], [-1]) is None
    kept(tmp_path).add(facts(-1, head=True), [-1])
    kept(tmp_path).add(facts(0, "embedding"), [])
    assert_equal(kept(tmp_path).find([0, "0", "embedding", -1], [-1]), facts(0, "0", "embedding", -1, head=True))
    assert_equal(kept(tmp_path).find([-1], []), facts(-1))  # a loss that does not ask for the last layer
    assert kept(tmp_path).find([0, -1], [0]) is None  # which the head is not known to pool


def test_pretrained_teachers_that_differ_in_arguments_alone_are_not_the_same(monkeypatch):
    """Such as in their pooling, which is in no weight."""
    network = models.create_model("cifar_resnet8", num_classes=5)
    monkeypatch.setattr(models, "create_model", lambda *_, **__: network)
    data: Any = SimpleNamespace(num_classes=5, image_size=32, class_names=list("abcde"))
    digests = []
    for args in ({}, {}, {"global_pool": "max"}, {"global_pool": "avg"}):
        config = TeacherConfig(model="resnet18", weights="pretrained", args=args)
        digests.append(_from_timm("pretrained", config, "teachers[0]", data, Config()).digest)
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_teacher_of_the_hub_that_knows_the_classes_in_another_order_is_refused(monkeypatch):
    network = models.create_model("cifar_resnet8", num_classes=3)
    network.pretrained_cfg = network.pretrained_cfg | {"label_names": ["bee", "ant", "cat"]}
    monkeypatch.setattr(models, "create_model", lambda *_, **__: network)
    data: Any = SimpleNamespace(num_classes=3, image_size=32, class_names=["ant", "bee", "cat"])
    source = "hf-hub:org/name"
    message = r"teachers\[0\] hf-hub:org/name: knows the same classes in another order: .*class_order: \[1, 0, 2\]"
    with pytest.raises(UserError, match=message):
        _from_timm(source, TeacherConfig(weights=source), "teachers[0]", data, Config())
    ordered = TeacherConfig(weights=source, class_order=[1, 0, 2])
    assert _from_timm(source, ordered, "teachers[0]", data, Config()).num_classes == 3


@pytest.mark.parametrize("changes", [{"digest": "b"}, {"size": 24}])
def test_those_of_another_teacher_of_the_same_name_are_not_found(tmp_path, changes):
    kept(tmp_path).add(facts(-1, head=True), [-1])
    assert kept(tmp_path, **changes).find([-1], [-1]) is None
    [folder], other = (tmp_path / "logits").glob("*/"), kept(tmp_path, **changes)
    folder.rename(other._folder)  # nor where they lie in its place
    assert other.find([-1], [-1]) is None


def test_every_damage_is_noticed_and_mended(tmp_path):
    kept(tmp_path).add(facts(-1, "0", head=True), [-1])
    folder = kept(tmp_path)._folder
    for name in ("about.json", "classifier.safetensors"):
        whole = (folder / name).read_bytes()
        text = json.loads(whole) if name == "about.json" else {}
        begin = whole.index(b'"facts"') if text else 0  # before it stands what people read
        for damaged in (
            *(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in range(begin, len(whole), 5)),
            *(whole[:size] for size in (0, begin + 9, len(whole) - 3)),
        ):
            (folder / name).write_bytes(damaged)
            found = kept(tmp_path).find([-1, "0"], [-1])
            if found is not None:  # white space of JSON, or how a string is written
                assert text and damaged != whole
                assert_equal(found, facts(-1, "0", head=True))
        (folder / name).unlink()
        assert kept(tmp_path).find([-1, "0"], [-1]) is None
        kept(tmp_path).add(facts(-1, head=True), [-1])
        assert_equal(kept(tmp_path).find([-1], [-1]), facts(-1, head=True))
        kept(tmp_path).add(facts(-1, "0", head=True), [-1])


@pytest.mark.parametrize(
    ("weight", "bias", "shape"),
    [
        (torch.zeros(4, 6), torch.zeros(4), (6, 4, 4)),  # other classes
        (torch.zeros(5, 7), torch.zeros(5), (6, 4, 4)),  # not what is pooled
        (torch.zeros(5, 6), torch.zeros(6), (6, 4, 4)),
        (torch.zeros(5, 6).half(), torch.zeros(5), (6, 4, 4)),
        (torch.zeros(5, 6), torch.zeros(5), (6, 0, 4)),
        (torch.zeros(5, 6), torch.zeros(5), ()),
    ],
)
def test_a_layer_that_cannot_be_the_teachers_is_not_used_though_its_checksum_fits(tmp_path, weight, bias, shape):
    kept(tmp_path).add(FeatureFacts("net", [-1], [shape], (weight, bias)), [-1])
    assert kept(tmp_path).find([-1], [-1]) is None


def test_they_are_listed_counted_and_erased_with_the_stores(tmp_path, capsys):
    kept(tmp_path).add(facts(-1, head=True), [-1])
    [one] = cache.listed(tmp_path / "logits")
    assert one.teacher == "net" and one.filled == 1.0 and one.gigabytes > 0
    cache.main(["--dir", str(tmp_path)])
    assert "net, layers' shapes and last linear layer" in capsys.readouterr().out
    cache.main(["--dir", str(tmp_path), "--erase", one.key])
    assert kept(tmp_path).find([-1], [-1]) is None and not cache.listed(tmp_path / "logits")
    kept(tmp_path).add(facts(-1, head=True), [-1])
    cache.make_room(tmp_path / "logits", 1e-9, 1)
    assert not cache.listed(tmp_path / "logits")
