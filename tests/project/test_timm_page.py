"""docs/timm.md: its configuration is one, and its keys exist."""

import re
from pathlib import Path

import pytest
from timm.data.auto_augment import LEVEL_TO_ARG

import kd_methods
from kd_core.config import Config, Layer, parse_yaml, resolve
from kd_core.data.recipes import POLICY, strengths
from kd_methods import feature_losses, logit_losses

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "timm.md").read_text()
NUMBERS = {"ten": 10}


def configuration() -> Config:
    [block] = re.findall(r"```yaml\n# mine.yaml\n(.*?)```", PAGE, re.S)
    return resolve([Layer("mine.yaml", parse_yaml(block, "mine.yaml"))]).config


def test_the_configuration_is_one() -> None:
    config = configuration()
    assert config.augment.operations == ["resized_crop", "randaugment", "erasing", "mixup", "cutmix"]
    assert config.kd.type == "average" and config.training.ema and config.cache.mode == "fixed"


def test_every_key_of_the_table_exists() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) > 25
    known = configuration()
    sections = {"data", "model", "teachers", "kd", "augment", "training", "cache"}
    found = 0
    for _, here, _ in rows:
        for text in re.findall(r"`([^`]+)`", here):
            path = text.partition(":")[0].split(".")
            if path[0] not in sections:
                continue
            value: object = known
            for part in path:
                if part != "teachers":
                    assert part in type(value).model_fields, text
                value = getattr(value, part)
            found += 1
    assert found > 30


def test_randaugment_is_as_strong_as_timms() -> None:
    settings = configuration().augment.randaugment
    assert settings and "--aa rand-m9-mstd0" in PAGE
    table = strengths(wide=False, side=331)[..., settings.magnitude].abs()
    for own, timms in {"rotate": "Rotate", "shear_x": "ShearX", "shear_y": "ShearY"}.items():
        [angle] = LEVEL_TO_ARG[timms](9, {})
        assert table[POLICY.index(own)].tolist() == pytest.approx([abs(angle)] * 2), own
    [share] = LEVEL_TO_ARG["TranslateXRel"](9, {})
    assert table[POLICY.index("translate_x")].tolist() == pytest.approx([abs(share) * 331] * 2, rel=0.01)


def test_the_counts_of_losses() -> None:
    assert f"{len(feature_losses.OWN) - 1} other feature losses" in PAGE
    [word] = re.findall(r"(\w+) other logit losses", PAGE)
    assert NUMBERS[word] == len(logit_losses.OWN) - 1 and "kd" in logit_losses.OWN
    assert kd_methods.config_class("average").model_fields["hard_weight"].default == 1
