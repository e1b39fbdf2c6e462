"""Every registered CIFAR network keeps timm's interface, and the literature's sizes, names and logits."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import kd_core.zoo  # noqa: F401  (registers the networks)
from kd_core.errors import UserError
from kd_core.models.weights import load_strict
from kd_core.porting import mdistiller, torchdistill
from kd_core.zoo.cifar_stem import FAMILIES

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = json.loads((GOLDEN / "model_zoo.json").read_text())
LOGITS = json.loads((GOLDEN / "zoo_logits.json").read_text())["networks"]
RENAMED = {
    "mobilenetv2_T_w (width 0.5)": "mobilenetv2",
    "mobilenetv2 (half width)": "mobilenetv2",
    "ShuffleV1": "shufflenet_v1",
    "ShuffleV2": "shufflenet_v2",
    "ResNet50": "resnet50",
}
NATIVE = timm.list_models("cifar_*", exclude_filters="cifar_stem_*")
DEEP = ("cifar_resnet110", "cifar_resnet110_a", "cifar_resnet32x4")
# one or two per family, and the odd stems: deep, pre-activation, "same" padding, squeezed blocks
STEMS = [
    "resnet18", "resnet26d", "resnet10t", "densenet121", "efficientnet_b0", "tf_efficientnet_b0",
    "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "mixnet_s",
    "regnetx_002", "regnetv_040",
]  # fmt: skip


def zoo_name(golden_name: str) -> str:
    return "cifar_" + RENAMED.get(golden_name, golden_name.removesuffix("_bn"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_interface(name, images):
    """Forward, features, intermediates, head: consistent with each other as in timm's own networks."""
    model = timm.create_model(name, num_classes=7).eval()
    features = model.forward_features(images)
    logits = model(images)
    embedding = model.forward_head(features, pre_logits=True)
    last, all_stages = model.forward_intermediates(images)
    chosen = model.forward_intermediates(images, indices=[1, -2], stop_early=True, intermediates_only=True)
    normed = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    assert logits.shape == (2, 7) and logits.isfinite().all()
    assert features.shape[1] == model.num_features == embedding.shape[1]
    torch.testing.assert_close(model.get_classifier()(embedding), logits)
    torch.testing.assert_close(last, features)
    assert len(all_stages) == len(model.feature_info)
    for stage, info in zip(all_stages, model.feature_info, strict=True):
        assert stage.shape == (2, info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])
    assert torch.equal(chosen[0], all_stages[1]) and torch.equal(chosen[1], all_stages[-2])
    if "wrn" in name:  # the last stage of a pre-activation network is raw until its norm
        assert torch.equal(normed[0], features) and not torch.equal(all_stages[-1], features)

    assert model.default_cfg["architecture"] == name and model.default_cfg["input_size"] == (3, 32, 32)
    assert model.default_cfg["mean"] == (0.5071, 0.4867, 0.4408) and model.default_cfg["crop_pct"] == 1.0
    assert isinstance(model.get_submodule(model.default_cfg["classifier"]), torch.nn.Linear)
    assert isinstance(model.get_submodule(model.default_cfg["first_conv"]), torch.nn.Conv2d)

    model.reset_classifier(3)
    assert model(images).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), embedding)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images), features)


@pytest.mark.parametrize("name", [n for n in NATIVE if n not in DEEP])
def test_construction_options(name):
    """No classes, gray images, an odd larger size in channels_last memory, features only."""
    images = torch.randn(2, 1, 40, 40).to(memory_format=torch.channels_last)
    model = timm.create_model(name, num_classes=0, in_chans=1, drop_rate=0.5).eval()
    embedding = model(images)
    assert embedding.shape == (2, model.num_features)
    torch.testing.assert_close(
        model.to(memory_format=torch.channels_last)(images), embedding, rtol=1e-4, atol=1e-5
    )
    assert not torch.equal(model.train()(images), embedding)

    features = timm.create_model(name, features_only=True, out_indices=(1, 2), in_chans=1).eval()
    assert [f.shape[1] for f in features(images)] == features.feature_info.channels()
    assert features.feature_info.reduction() == [40 // f.shape[-1] for f in features(images)]


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_wrn_16_1", "cifar_vgg8", "cifar_mobilenetv2"])
def test_checkpointing_keeps_gradients(name, images):
    """Recomputing activations changes memory, not the gradient."""
    model = timm.create_model(name, num_classes=5)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append(model.get_submodule(model.default_cfg["first_conv"]).weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_pruned_features_drop_what_they_do_not_need(images):
    whole = timm.create_model("cifar_resnet20")
    early = timm.create_model("cifar_resnet20", features_only=True, out_indices=(0, 1))
    assert sum(p.numel() for p in early.parameters()) < 0.1 * sum(p.numel() for p in whole.parameters())
    assert [f.shape[1:] for f in early(images)] == [(16, 32, 32), (16, 32, 32)]


@pytest.mark.parametrize("golden_name", SIZES)
def test_sizes_are_the_literatures(golden_name):
    expected = SIZES[golden_name]
    model = timm.create_model(zoo_name(golden_name), num_classes=100).eval()
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    features = model.forward_intermediates(torch.zeros(1, 3, 32, 32), intermediates_only=True)
    assert [list(f.shape[1:]) for f in features] == expected["feature_shapes"]
    assert model.num_features == expected["embedding_dim"]


def filled(name: str, shape: list[int]) -> torch.Tensor:
    """The rule of zoo_logits.json."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    z: np.ndarray = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        z = 0.9 + 0.2 * np.abs(z)
    elif name.endswith("running_mean") or (len(shape) == 1 and name.endswith("bias")):
        z = 0.05 * z
    elif len(shape) == 1:
        z = 0.3 + 0.05 * z
    else:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


@pytest.mark.parametrize("golden_name", LOGITS)
def test_public_checkpoints_give_the_same_logits(golden_name):
    golden = LOGITS[golden_name]
    model = timm.create_model(zoo_name(golden_name), num_classes=100).eval()
    public = {name: filled(name, shape) for name, shape in golden["state_dict"].items()}
    load_strict(model, public, f"'{golden_name}'", num_classes=100)
    images = torch.from_numpy(np.random.default_rng(2026).standard_normal((3, 3, 32, 32)).astype(np.float32))
    with torch.inference_mode():
        logits = model(images)
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    # the golden values are rounded to 5 decimals (4 for the sums over 100 classes)
    torch.testing.assert_close(logits[:, :5], torch.tensor(golden["logits_first_5"]), rtol=1e-4, atol=6e-6)
    torch.testing.assert_close(logits.sum(1), torch.tensor(golden["logits_sum"]), rtol=1e-4, atol=6e-5)
    assert logits.abs().mean().item() == pytest.approx(golden["logits_abs_mean"], rel=1e-4)
    assert pooled.abs().mean().item() == pytest.approx(golden["pooled_abs_mean"], rel=1e-4)


class ReferenceA(torch.nn.Module):
    """A ResNet with option-A shortcuts under the names of its most copied checkpoints, written down once more."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        width = 16
        for stage, planes in enumerate((16, 32, 64), 1):
            blocks = []
            for number in range((depth - 2) // 6):
                block = torch.nn.Module()
                block.stride = 2 if stage > 1 and number == 0 else 1
                block.conv1 = torch.nn.Conv2d(width, planes, 3, block.stride, 1, bias=False)
                block.bn1 = torch.nn.BatchNorm2d(planes)
                block.conv2 = torch.nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
                block.bn2 = torch.nn.BatchNorm2d(planes)
                width = planes
                blocks.append(block)
            setattr(self, f"layer{stage}", torch.nn.Sequential(*blocks))
        self.linear = torch.nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                y = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
                if block.stride == 2:
                    some = x[:, :, ::2, ::2]
                    x = torch.zeros_like(y)
                    quarter = y.shape[1] // 4
                    x[:, quarter : y.shape[1] - quarter] = some
                x = (y + x).relu()
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_option_a_is_its_definition(depth, images):
    """Published checkpoints: DataParallel's names, in a container; the logits are a plain implementation's."""
    torch.manual_seed(depth)
    reference = ReferenceA(depth, 10).train()
    reference(torch.randn(16, 3, 32, 32))  # BatchNorm statistics other than 0 and 1
    public = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    model = timm.create_model(f"cifar_resnet{depth}_a", num_classes=10).eval()
    load_strict(model, public, "here", num_classes=10)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), reference.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_option_a_has_the_papers_sizes(depth, parameters):
    """For the 10 classes of CIFAR-10: 0.27M, 0.46M, 0.66M, 0.85M and 1.7M in the paper's table 6."""
    with torch.device("meta"):
        model = timm.create_model(f"cifar_resnet{depth}_a", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_shortcuts_and_heads_under_other_names_load():
    """kuangliu's and akamaster's projections are called shortcut, their classifier linear."""
    for name in ("cifar_resnet20", "cifar_stem_resnet18"):
        model = timm.create_model(name, num_classes=10)
        public = {
            key.replace("downsample", "shortcut").replace("fc.", "linear."): tensor + 0
            for key, tensor in timm.create_model(name, num_classes=10).state_dict().items()
        }
        load_strict(model, public, "here", num_classes=10)
        assert torch.equal(model.layer2[0].downsample[0].weight, public["layer2.0.shortcut.0.weight"])
        assert torch.equal(model.fc.weight, public["linear.weight"])


@pytest.mark.parametrize("name", STEMS)
def test_stem_variants(name, images):
    """32 pixels end as 4x4; only the first convolution's shape differs from timm's parameters."""
    model = timm.create_model(f"cifar_stem_{name}", num_classes=10).eval()
    features = model.forward_features(images)
    assert features.shape[2:] == (4, 4) and model(images).shape == (2, 10)
    stages = model.forward_intermediates(images, intermediates_only=True)
    for stage, info in zip(stages, model.feature_info, strict=True):
        assert stage.shape[1:3] == (info["num_chs"], 32 // info["reduction"])
    assert model.default_cfg["input_size"] == (3, 32, 32)
    assert model.default_cfg["architecture"] == f"cifar_stem_{name}"
    assert model.get_submodule(model.default_cfg["first_conv"]).stride == (1, 1)

    original = timm.create_model(name, num_classes=10).state_dict()
    ours = model.state_dict()
    assert list(ours) == list(original)
    changed = {key for key in ours if ours[key].shape != original[key].shape}
    assert changed <= {model.default_cfg["first_conv"] + ".weight"}


def test_every_model_of_the_families_has_a_stem_variant():
    originals = [name for family in FAMILIES for name in timm.list_models(module=family)]
    assert len(originals) > 200
    assert timm.list_models("cifar_stem_*") == timm.list_models([f"cifar_stem_{name}" for name in originals])


@pytest.mark.slow
def test_every_stem_variant_ends_at_4x4():
    """All of them, on the meta device: shapes without arithmetic."""
    with torch.device("meta"):
        image = torch.empty(1, 3, 32, 32)
        for name in timm.list_models("cifar_stem_*"):
            model = timm.create_model(name, num_classes=10).eval()
            assert model.forward_features(image).shape[2:] == (4, 4), name
            assert model(image).shape == (1, 10), name
            stages = model.forward_intermediates(image, intermediates_only=True)
            described = [(info["num_chs"], 32 // info["reduction"]) for info in model.feature_info]
            assert [tuple(stage.shape[1:3]) for stage in stages] == described, name


def test_stem_features_only(images):
    model = timm.create_model("cifar_stem_resnet18", features_only=True).eval()
    assert [f.shape[1:3] for f in model(images)] == [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)]


def test_wrong_layout_names_what_differs():
    model = timm.create_model("cifar_resnet20", num_classes=100)
    other = timm.create_model("cifar_wrn_16_2", num_classes=100).state_dict()
    with pytest.raises(UserError, match="weights are for another architecture"):
        load_strict(model, other, "teachers[0] 'cifar_resnet20'", num_classes=100)


def test_networks_of_other_projects_experiments_are_here():
    """mdistiller's `feats` are the stages here, which `kd_core.porting` counts on."""
    with torch.device("meta"):
        for name, stages in mdistiller.NETWORKS.values():
            assert len(timm.create_model(name, num_classes=2).feature_info) == stages, name
    assert set(torchdistill.WIDE.values()) <= set(NATIVE)
