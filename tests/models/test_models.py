"""Models by name, their preprocessing, and exports that timm itself can load."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.models._hub import load_model_config_from_path

from kd_core.config import Layer, resolve
from kd_core.errors import UserError
from kd_core.models import build as models
from kd_core.models import network as networks
from kd_core.models.build import Preprocess, create_model

VIT = "vit_tiny_patch16_224"
PREPROCESS = Preprocess(32, 32, "bilinear", (0.5, 0.25, 0.125), (0.25, 0.5, 0.75))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt18", {}, "teachers[1].model: unknown model 'resnt18', did you mean 'resnet18'"),
        ("cifar_resnet21", {}, "did you mean 'cifar_resnet"),
        ("resnet20", {}, "unknown model 'resnet20', did you mean 'cifar_resnet20'?"),
        ("wrn_40_2", {}, "did you mean 'cifar_wrn_40_2'?"),
        ("shufflenetv1", {}, "did you mean 'cifar_shufflenet_v1'"),
        ("cifar_stem_resnet17", {}, "did you mean 'cifar_stem_resnet"),
        ("zzzzzzzz", {}, "allowed: a timm name, a cifar_ name, or hf-hub:org/name"),
        ("resnet18.nonsense", {}, "unknown pretrained tag 'nonsense', known: a1_in1k"),
        (VIT, {"args": {"patch_sze": 4}}, "rejected the arguments (patch_sze=4): TypeError"),
        ("cifar_resnet20", {"args": {"img_size": 32}}, "rejected the arguments (img_size=32): TypeError"),
        ("cifar_resnet20", {"args": {"checkpoint_path": "x"}}, "args.checkpoint_path is not an argument"),
        (VIT, {"img_size": 32, "args": {"img_size": 64}}, "img_size is 32 but args.img_size is 64"),
        (VIT, {"stem": "cifar"}, "the families with one are timm's resnet, densenet, "),
        ("cifar_resnet20", {"pretrained": True}, "'cifar_resnet20': has no pretrained weights"),
        ("resnet18", {"pretrained": True, "stem": "cifar"}, "'cifar_stem_resnet18': has no pretrained"),
        ("hf-hub:org/name", {"stem": "cifar"}, "a model of the Hub has no cifar stem"),
    ],
)
def test_every_mistake_has_its_message(name, options, message):
    with pytest.raises(UserError) as caught:
        create_model(name, num_classes=10, where="teachers[1].model", **options)
    assert str(caught.value).startswith("teachers[1].model") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreachable_hub_is_one_message(tmp_path):
    """In a process of its own, since the Hub's client reads HF_HUB_OFFLINE when it is imported."""
    program = """
from kd_core.models.build import create_model
from kd_core.errors import UserError
for name in ("resnet18", "hf-hub:nobody/nothing"):
    try:
        create_model(name, num_classes=10, pretrained=True)
    except UserError as error:
        print("refused:", error)
"""
    lines = run_python(program, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)).splitlines()
    assert lines[0].startswith("refused: model 'resnet18': pretrained weights cannot be fetched: ")
    assert lines[1].startswith("refused: model 'hf-hub:nobody/nothing': cannot be read from the Hub: ")


def run_python(program: str, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
    """Standard output of a fresh interpreter; this project is importable only from its own folder."""
    root = Path(__file__).parents[2]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=cwd or root, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_img_size_reaches_models_built_for_one_size():
    vit = create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, args={"patch_size": 4, "depth": 1})
    assert vit(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert models.preprocess_of(vit).size == 32
    cnn = create_model("cifar_resnet8", num_classes=5, img_size=48)  # any size: only the view's
    assert models.preprocess_of(cnn).size == 48


def test_architecture():
    assert models.architecture("resnet18.a1_in1k") == "resnet18"
    assert models.architecture("resnet18", "cifar") == "cifar_stem_resnet18"
    assert models.architecture("cifar_resnet20", "cifar") == "cifar_resnet20"
    assert (
        create_model("resnet18", num_classes=4, stem="cifar").pretrained_cfg["architecture"]
        == "cifar_stem_resnet18"
    )


OLD = {
    "tv_resnet50": "resnet50.tv_in1k",
    "vit_base_patch16_224_in21k": "vit_base_patch16_224.augreg_in21k",
    "convnext_tiny_384_in22ft1k": "convnext_tiny.fb_in22k_ft_in1k_384",
}


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_timms_old_names_map_to_todays(old, new):
    """As timm itself maps them, but with the size and the normalization of the weights."""
    assert models.current_name(old) == new
    assert models.renamed_note(old, "model.name") == f"model.name: timm calls {old!r} {new!r} today, and that is used"
    assert models.renamed_note(new, "model.name") is None
    assert models.architecture(old) == new.split(".")[0]
    assert models.input_size(old) == models.input_size(new) == (384 if "384" in old else 224)


def test_img_size_reaches_networks_under_their_old_names():
    old = create_model("vit_tiny_patch16_224_in21k", num_classes=5, img_size=32, args={"patch_size": 8, "depth": 1})
    assert old(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert models.preprocess_of(old).size == 32
    assert models.preprocess_of(old).mean == (0.5, 0.5, 0.5)


def test_removed_names_say_so(monkeypatch):
    monkeypatch.setattr(models, "get_deprecated_models", lambda: {"gone_net": None})
    with pytest.raises(UserError, match="model.name: timm has removed the model 'gone_net'"):
        models.input_size("gone_net", where="model.name")


def test_input_size_without_building(monkeypatch):
    monkeypatch.setattr(timm, "create_model", None)
    assert models.input_size("cifar_resnet20") == models.input_size("resnet18", stem="cifar") == 32
    assert models.input_size("vit_base_patch16_224") == 224
    assert models.input_size("vit_base_patch16_224", img_size=64) == 64
    with pytest.raises(UserError, match="unknown model 'nothing'"):
        models.input_size("nothing")


def test_preprocess_is_timms():
    """The sides that timm's own evaluation transform resizes and crops to."""
    model = create_model("vit_tiny_patch16_224", num_classes=2, args={"depth": 1})
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    resize, crop = transform.transforms[:2]
    ours = models.preprocess_of(model)
    assert (ours.resize, ours.size) == (resize.size, crop.size[0]) == (248, 224)
    assert (ours.mean, ours.std) == (config["mean"], config["std"]) and ours.interpolation == "bicubic"


def test_statistics_of_the_data_drop_the_imagenet_crop():
    model = create_model("resnet18", num_classes=2, img_size=32)
    assert models.preprocess_of(model).resize > 32
    own = models.preprocess_of(model, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert own == Preprocess(32, 32, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_crop_pct_gives_the_resize_back():
    for size in (32, 64, 160, 224, 299):
        for resize in range(size, 2 * size):
            fraction = Preprocess(size, resize, "bicubic", (), ()).crop_pct
            assert math.floor(size / fraction) == resize


def exported(folder: Path, name: str, preprocess: Preprocess = PREPROCESS, **options) -> torch.nn.Module:
    model = create_model(name, num_classes=3, **options).eval()
    models.export(
        model,
        folder,
        architecture=models.architecture(name, options.get("stem", "default")),
        model_args=options.get("args") or {},
        num_classes=3,
        class_names=["ant", "bee", "cat"],
        preprocess=preprocess,
        extra={"note": 1},
    )
    return model


EXPORTS = [
    ("resnet10t", {}),
    ("mobilenetv3_small_050", {"args": {"drop_rate": 0.1}}),
    ("vit_tiny_patch16_224", {"img_size": 32, "args": {"patch_size": 8, "depth": 2}}),
    ("cifar_wrn_16_1", {}),
    ("resnet10t", {"stem": "cifar"}),
]


@pytest.mark.parametrize(("name", "options"), EXPORTS)
def test_export_and_load(tmp_path, name, options):
    model = exported(tmp_path / "student", name, **options)
    models.export(  # a second export replaces the first
        model, tmp_path / "student", architecture=models.architecture(name, options.get("stem", "default")),
        model_args=options.get("args") or {}, num_classes=3, class_names=["ant", "bee", "cat"],
        preprocess=PREPROCESS, extra={"note": 2},
    )  # fmt: skip
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["config.json", "model.safetensors", "student"]
    loaded = models.load_export(tmp_path / "student")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.model.eval()(images), model(images))
    assert loaded.preprocess == PREPROCESS == models.preprocess_of(loaded.model)
    assert loaded.class_names == ["ant", "bee", "cat"] and loaded.num_classes == 3
    assert loaded.config["extra"] == {"note": 2}
    assert loaded.architecture == models.architecture(name, options.get("stem", "default"))


def test_stock_exports_load_in_plain_timm_and_the_projects_are_refused_by_name(tmp_path):
    """Same logits and views in a process without this project; unknown names fail, never load wrongly."""
    images = torch.randn(2, 3, 32, 32)
    safetensors.torch.save_file({"images": images}, tmp_path / "images")
    expected = {}
    for index, (name, options) in enumerate(EXPORTS):
        model = exported(tmp_path / str(index), name, **options)
        expected[f"{index}"] = model(images).detach()
    program = """
import sys, timm, torch, safetensors.torch
images = safetensors.torch.load_file("images")["images"]
out = {}
for index in sys.argv[1:]:
    try:
        model = timm.create_model("local-dir:" + index, pretrained=True).eval()
    except RuntimeError as error:
        print(index, error)
        continue
    config = timm.data.resolve_model_data_config(model)
    resize = timm.data.create_transform(**config).transforms[0].size
    names = model.pretrained_cfg["label_names"]
    print(index, resize, config["mean"], config["std"], config["interpolation"], names)
    out[index] = model(images).detach()
safetensors.torch.save_file(out, "logits")
assert "kd_core" not in sys.modules
"""
    lines = run_python(program, *expected, cwd=tmp_path).splitlines()
    for line in lines[:3]:
        assert line[2:] == "32 [0.5, 0.25, 0.125] [0.25, 0.5, 0.75] bilinear ['ant', 'bee', 'cat']"
    assert lines[3:] == ["3 Unknown model (cifar_wrn_16_1)", "4 Unknown model (cifar_stem_resnet10t)"]
    logits = safetensors.torch.load_file(tmp_path / "logits")
    assert sorted(logits) == ["0", "1", "2"]
    for index, tensor in logits.items():
        assert torch.equal(tensor, expected[index])
    for index in ("3", "4"):  # here the zoo is registered
        model = timm.create_model(f"local-dir:{tmp_path / index}", pretrained=True).eval()
        assert torch.equal(model(images), expected[index])


def test_class_names_are_stored_where_readers_look(tmp_path):
    """At the top, as timm's own writer has them, and as timm's own reader finds them."""
    names, model = ["ant", "bee", "cat"], exported(tmp_path / "ours", "resnet10t")
    timm.models.save_for_hf(model, tmp_path / "timms", model_config={"label_names": names}, safe_serialization=True)
    ours, timms = (json.loads((tmp_path / by / "config.json").read_text()) for by in ("ours", "timms"))
    assert timms.keys() - ours.keys() <= {"global_pool"}  # "for informational purposes", as timm says
    assert ours["label_names"] == timms["label_names"] == ours["pretrained_cfg"]["label_names"] == names
    for by in ("ours", "timms"):
        assert models.load_export(tmp_path / by).class_names == names
        cfg, architecture, _ = load_model_config_from_path(tmp_path / by)
        assert (cfg["label_names"], cfg["num_classes"], architecture) == (names, 3, "resnet10t")


def test_class_names_of_older_exports_are_read(tmp_path):
    """Theirs stand inside `pretrained_cfg` alone."""
    exported(tmp_path, "resnet10t")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["label_names"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert models.load_export(tmp_path).class_names == ["ant", "bee", "cat"]
    assert load_model_config_from_path(tmp_path)[0]["label_names"] == ["ant", "bee", "cat"]


def test_without_class_names_the_top_level_has_none(tmp_path):
    model = create_model("resnet10t", num_classes=3)
    models.export(
        model, tmp_path, architecture="resnet10t", model_args={}, num_classes=3, class_names=None,
        preprocess=PREPROCESS,
    )  # fmt: skip
    assert "label_names" not in json.loads((tmp_path / "config.json").read_text())
    assert models.load_export(tmp_path).class_names is None


def test_tied_and_channels_last_parameters_are_exported(tmp_path):
    model = create_model("cifar_resnet8", num_classes=3).eval().to(memory_format=torch.channels_last)
    model.layer1[0].conv2.weight = model.layer1[0].conv1.weight
    models.export(
        model, tmp_path / "student", architecture="cifar_resnet8", model_args={}, num_classes=3,
        class_names=None, preprocess=PREPROCESS,
    )  # fmt: skip
    loaded = models.load_export(tmp_path / "student").model.eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), model(images))
    assert torch.equal(loaded.layer1[0].conv2.weight, loaded.layer1[0].conv1.weight)


def test_loads_what_timm_exports(tmp_path):
    model = timm.create_model("resnet10t", num_classes=4).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = models.load_export(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.model.eval()(images), model(images)) and loaded.class_names is None
    assert loaded.preprocess == models.preprocess_of(model)


def test_a_student_of_the_hub_is_exported_with_the_arguments_of_its_repository(tmp_path, monkeypatch):
    """Which timm adds to those of the call; without them its export would be another network."""
    cfg = timm.get_pretrained_cfg("test_vit").to_dict() | {"input_size": (3, 32, 32)}
    args = {"patch_size": 8, "img_size": 32, "act_layer": "silu", "global_pool": "avg", "fc_norm": False}
    for module in (timm.models._factory, models):
        monkeypatch.setattr(module, "load_model_config_from_hf", lambda *_, **__: (dict(cfg), "test_vit", dict(args)))
    layer = {"data": {"source": "digits"}, "model": {"name": "hf-hub:org/name", "args": {"act_layer": "relu"}}}
    data: Any = SimpleNamespace(
        num_classes=3, class_names=["ant", "bee", "cat"], fingerprint="f", image_size=32, mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    network = networks.build(resolve([Layer("test", layer)]).config, data)
    network.export(tmp_path, {})
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(models.load_export(tmp_path).model.eval()(images), network.model.eval()(images))
    assert json.loads((tmp_path / "config.json").read_text())["model_args"] == args | {"act_layer": "relu"}


def change(key: str, value: object):
    def edit(config: dict) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("architecture", "resnet_of_nobody"), "unknown model 'resnet_of_nobody'"),
        (change("architecture", "local-dir:/etc"), "architecture: String should match pattern"),
        (change("architecture", ["resnet18"]), "architecture: Input should be a valid string"),
        (change("num_classes", 10**9), "num_classes: Input should be less than or equal to"),
        (change("num_classes", "3"), "num_classes: Input should be a valid integer"),
        (change("num_classes", 4), "label_names: 3 names for 4 classes"),
        (change("model_args", {"img_size": 10**9}), "model_args.img_size"),
        (change("model_args", {"embed_dim": 6144}), "model.safetensors"),  # more than the file holds
        (change("model_args", {"act_layer": {"module": "os"}}), "model_args.act_layer"),
        (change("model_args", {"act_layer": "os.system"}), "rejected the arguments"),
        (change("model_args", {"checkpoint_path": "/etc/passwd"}), "args.checkpoint_path is not an argument"),
        (change("model_args", {"pretrained": True}), "args.pretrained is not an argument"),
        (
            change("pretrained_cfg.std", [0.0, 1.0, 1.0]),
            "pretrained_cfg.std.0: Input should be greater than 0",
        ),
        (change("pretrained_cfg.mean", [float("nan")] * 3), "pretrained_cfg.mean.0"),
        (change("pretrained_cfg.crop_pct", 0), "pretrained_cfg.crop_pct"),
        (change("pretrained_cfg.input_size", [3, 10**6, 10**6]), "pretrained_cfg.input_size"),
        (change("pretrained_cfg", None), "pretrained_cfg: Input should be"),
    ],
)
def test_hostile_configs_are_refused(tmp_path, edit, message):
    exported(tmp_path, "vit_tiny_patch16_224", img_size=32, args={"depth": 1})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        models.load_export(tmp_path)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_other_damage_is_named(tmp_path):
    exported(tmp_path, "cifar_resnet8")
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        models.load_export(tmp_path)
    other = create_model("cifar_resnet14", num_classes=3)
    safetensors.torch.save_file(other.state_dict(), weights)
    with pytest.raises(UserError, match=r"model\.safetensors: 36 unexpected keys .*another architecture"):
        models.load_export(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        models.load_export(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        models.load_export(tmp_path)
    with pytest.raises(UserError, match="missing"):
        models.load_export(tmp_path / "missing")


def test_count_parameters():
    model = create_model("cifar_resnet8", num_classes=100)
    assert models.count_parameters(model.requires_grad_(False)) == 83_892
