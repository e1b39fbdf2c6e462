"""The section `augment`: absent it is in no settings and no digest; mistakes in it are one message each."""

import pytest

from kd_core.config import Config, digest, parse_overrides, resolve
from kd_core.errors import UserError

TEACHER = "--teachers=[{model: cifar_resnet20, train: configs/teachers/cifar32.yaml}]"
CLEAN = "--teachers=[{model: cifar_resnet20, train: configs/teachers/cifar32.yaml, view: clean}]"
KD = (TEACHER, "--kd.type=average")


def load(*words: str) -> Config:
    return resolve([parse_overrides(list(words))]).config


def test_without_a_recipe_settings_and_digest_are_as_before():
    plain = load()
    assert "augment" not in plain.model_dump() and "augment" not in plain.to_yaml()
    for words in (["--augment={}"], ["--augment.trivialaugment=false"], ["--augment.mixup=null"]):
        assert load(*words).model_dump() == plain.model_dump() and digest(load(*words), "0") == digest(plain, "0")


def test_a_recipe_is_recorded_as_far_as_it_is_set_and_is_another_run():
    config = load("--augment.randaugment.magnitude=7", "--augment.cutmix={}", "--augment.fill=black")
    recorded = config.model_dump()["augment"]
    assert recorded == {
        "randaugment": {"ops": 2, "magnitude": 7}, "cutmix": {"alpha": 1.0, "probability": 0.5}, "fill": "black"
    }  # fmt: skip
    assert Config.model_validate(config.model_dump(mode="json")) == config
    some = ["--augment.randaugment={}"]
    others = [load(), load(*some), load(*some, "--augment.fill=black"), config]
    assert len({digest(one, "0") for one in others}) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--augment.autoaugment=true"], "augment.autoaugment: unknown key, did you mean 'randaugment'?"),
        (["--augment.randaugment.magnitude=31"], "augment.randaugment.magnitude: is 31: .*less than or equal to 30"),
        (["--augment.randaugment.ops=0"], "augment.randaugment.ops: is 0: .*greater than or equal to 1"),
        (["--augment.mixup.alpha=0"], "augment.mixup.alpha: is 0: .*greater than 0"),
        (["--augment.cutmix.probability=1.5"], "augment.cutmix.probability: is 1.5: .*less than or equal to 1"),
        (["--augment.cutout=0"], "augment.cutout: is 0: .*greater than or equal to 1"),
        (["--augment.color_jitter.hue=0.6"], "augment.color_jitter.hue: is 0.6: .*less than or equal to 0.5"),
        (["--augment.color_jitter={brightness: 0, contrast: 0, saturation: 0}"], "color_jitter: all of its .* are 0"),
        (["--augment.resized_crop.scale=[0.5]"], "augment.resized_crop.scale: "),
        (["--augment.resized_crop.scale=[0.5, 1.5]"], r"scale \[0.5, 1.5\] must be .* and at most 1"),
        (["--augment.erasing.ratio=[3, 0.3]"], r"erasing: ratio \[3.0, 0.3\] must be .*, above 0$"),
        (["--augment={trivialaugment: true, randaugment: {}}"], "randaugment and trivialaugment exclude each other"),
        (["--augment.fill=black"], "augment.fill: 'black' fills nothing without an operation"),
        (["--augment.second={fill: black}"], "augment.second.fill: 'black' fills nothing without an operation"),
        (["--augment.mixup={}", "--data.batch_size=1"], "data.batch_size: 1 is one mixed label per step"),
        ([*KD, "--augment.erasing={}", "--cache.mode=lazy"],
         "cache.mode: 'lazy' keeps views that come back, and those of augment.erasing are too many for that; choose"),
        ([CLEAN, "--kd.type=average", "--augment.mixup={}"],
         r"teachers\[0\].view: a clean teacher sees one whole image, where augment.mixup and augment.cutmix show"),
        (["--kd.type=average", "--teachers=[{logits: a.safetensors}]", "--augment.cutout=8"],
         r"teachers\[0\].logits: a file of logits has none of the views that augment.cutout makes; give the teacher's"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_message(words, message):
    with pytest.raises(UserError, match=message) as caught:
        load(*words)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_not_mixed_may_have_clean_teachers_and_any_other_cache():
    for mode in ("auto", "clean", "fixed", "off"):
        assert load(CLEAN, "--kd.type=average", "--augment.randaugment={}", f"--cache.mode={mode}")
        assert load(*KD, "--augment.cutmix={}", f"--cache.mode={mode}")
