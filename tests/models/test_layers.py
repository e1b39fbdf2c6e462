"""Logits and features in one pass: equal to the network's own, with the layers that are asked for, in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kd_methods
from kd_core.errors import UserError
from kd_core.models.build import create_model
from kd_core.models.layer_features import StudentAndMethod, WithFeatures, layers_of
from kd_core.models.predict import Images

NETWORKS: dict[str, dict[str, Any]] = {
    "cifar_resnet8": {},
    "cifar_wrn_16_1": {},
    "test_vit": {"img_size": 32, "args": {"patch_size": 8}},
    "resnet18": {"stem": "cifar"},
    "mobilenetv3_small_050": {"img_size": 32},
    "resnetv2_50": {"img_size": 32, "args": {"layers": [1, 1], "channels": [16, 32], "stem_chs": 8}},  # 1x1 classifier
}


def network_of(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    options = {**NETWORKS[name], **more}
    options["args"] = {**NETWORKS[name].get("args", {}), **more.get("args", {})}
    return create_model(name, num_classes=10, **options)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layers", [["embedding"], [-1, 0, "embedding", -2], ["MODULE", 1]], ids=str)
def test_logits_and_statistics_are_those_of_the_network_bit_for_bit(name, layers):
    """In training mode with dropout: nothing is drawn and BatchNorm is updated once."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    outcomes = []
    for wrapped in (False, True):
        network = network_of(name, args={"drop_rate": 0.3})
        module = next(name for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
        wanted = [module if layer == "MODULE" else layer for layer in layers]
        torch.manual_seed(2)
        model = WithFeatures(network, wanted, 32, "net") if wrapped else network
        assert network.training
        logits = model(images)[0] if wrapped else model(images)
        logits.square().sum().backward()
        outcomes.append((logits, *network.state_dict().values(), *(p.grad for p in network.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_the_stages_and_of_the_head(name):
    network = network_of(name).eval()
    images = torch.rand(2, 3, 32, 32)
    last, maps = network.forward_intermediates(images)
    layers = [len(maps) - 1, "embedding", -2, 0]
    source = WithFeatures(network, layers, 32, "net")
    logits, features = source(images)
    expected = [maps[-1], network.forward_head(last, pre_logits=True).flatten(1), maps[-2], maps[0]]
    assert torch.equal(logits, network(images))
    assert all(torch.equal(own, other) for own, other in zip(features, expected, strict=True))
    assert source.shapes == [tuple(value.shape[1:]) for value in expected]


def test_a_modules_output_is_what_it_gave_not_what_was_made_of_it():
    """An activation that works in place follows the BatchNorm."""
    network = network_of("cifar_resnet8").eval()
    images = torch.rand(2, 3, 32, 32)
    _, (features,) = WithFeatures(network, ["bn1"], 32, "net")(images)
    assert torch.equal(features, network.bn1(network.conv1(images))) and (features < 0).any()


def test_tokens_of_a_block_hold_the_class_token_and_stages_are_maps():
    source = WithFeatures(network_of("test_vit"), ["blocks.5", -1], 32, "net")
    assert source.shapes == [(17, 64), (64, 4, 4)]


def test_the_pass_before_training_changes_no_generator_and_no_statistics():
    network = network_of("cifar_resnet8")
    before = [value.clone() for value in network.state_dict().values()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    WithFeatures(network, [-1, "embedding"], 32, "net", {"cat_kd": [-1]})
    assert torch.equal(torch.rand(3), expected) and network.training
    assert all(torch.equal(one, other) for one, other in zip(before, network.state_dict().values(), strict=True))


class Plain(nn.Module):
    """A network without timm's interface; `twice` runs twice in a pass, `idle` never."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.twice = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8)), nn.ReLU()
        self.idle, self.pair = nn.ReLU(), Pair()
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pair(self.twice(self.twice(self.body(images))))[0])


class Pair(nn.Module):
    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values, values


@pytest.mark.parametrize(
    ("network", "layer", "words"),
    [
        ("cifar_resnet8", 4, "layer 4 of net: there is no such stage; there are 4: 0 to 3, or -4 to -1"),
        ("cifar_resnet8", -5, "layer -5 of net: there is no such stage"),
        ("cifar_resnet8", "layer9", "layer 'layer9' of net: there is no such module, did you mean 'layer"),
        ("cifar_resnet8", "bn", "conv1, bn1, act1, layer1, layer2, layer3, global_pool, head_drop, fc, those"),
        (Plain, -1, "layer -1 of net: the network has no forward_intermediates, as timm's have; name a module"),
        (Plain, "embedding", "layer 'embedding' of net: the network has no get_classifier"),
        (Plain, "twice", "layer 'twice' of net: runs several times in a pass"),
        (Plain, "idle", "layer 'idle' of net: does not run in a pass"),
        (Plain, "pair", "layer 'pair' of net: gives a tuple for 2 images, a map [B,C,H,W], tokens [B,N,D] or [B,D] is"),
    ],
)
def test_layers_that_do_not_exist_are_named_with_those_that_do(network, layer, words):
    built = network_of(network) if isinstance(network, str) else network()
    with pytest.raises(UserError) as caught:
        WithFeatures(built, [layer], 32, "net")
    assert str(caught.value).startswith("kd.features: layer ") and words in str(caught.value), caught.value


def test_modules_of_any_network_can_be_named():
    images, network = torch.rand(2, 3, 32, 32), Plain()
    logits, (features,) = WithFeatures(network, ["body"], 32, "net")(images)
    assert torch.equal(logits, network(images)) and torch.equal(features, network.body(images))


@pytest.mark.parametrize(
    ("name", "pools"),
    [("cifar_resnet8", True), ("resnet18", True), ("test_vit", False), ("mobilenetv3_small_050", False)],
)
def test_a_loss_that_needs_the_last_linear_layer_gets_it_where_the_head_is_pooling_alone(name, pools):
    network = network_of(name)
    if not pools:
        with pytest.raises(UserError, match="loss 'cat_kd' needs a head of average pooling and one linear layer"):
            WithFeatures(network, [-1], 32, "net", {"cat_kd": [-1]})
        return
    weight, bias = WithFeatures(network, [-1], 32, "net", {"cat_kd": [-1]}).classifier
    assert weight is network.fc.weight and bias is network.fc.bias
    assert WithFeatures(network, [-1], 32, "net").classifier is None


def test_such_a_loss_gets_the_map_that_the_head_pools():
    """A wide residual network has a norm and an activation between its last stage and the pooling."""
    network = network_of("cifar_wrn_16_1")
    WithFeatures(network, ["act1"], 32, "net", {"cat_kd": ["act1"]})
    with pytest.raises(UserError, match="layer -1 of net: is not what the head pools, and loss 'cat_kd' puts it"):
        WithFeatures(network, [-1], 32, "net", {"cat_kd": [-1]})


def test_every_entry_of_a_loss_has_its_layers_checked():
    entries = [{"loss": "cat_kd", "student": [place], "teacher": [place]} for place in (-1, "act1")]
    layers = layers_of(kd_methods.config_class("average").model_validate({"features": entries}), 1)
    assert layers.student_head == {"cat_kd": [-1, "act1"]} == layers.teacher_head[0]
    with pytest.raises(UserError, match="layer -1 of net: is not what the head pools"):
        WithFeatures(network_of("cifar_wrn_16_1"), layers.student, 32, "net", layers.student_head)


def test_settings_without_features_have_no_schedules_of_them():
    weight = {"from": 1.0, "to": 0.0}
    values = {"features": [{"loss": "mse", "weight": weight}], "temperature": {"from": 4.0, "to": 1.0}}
    kd = kd_methods.config_class("average").model_validate(values).without_features()
    assert kd.features == [] and kd.at(1.0).temperature == 1.0
    assert kd.model_dump()["temperature"] == {"from": 4.0, "to": 1.0, "shape": "linear"}


def test_layers_become_places_and_the_users_settings_stay():
    entries = [
        {"loss": "at", "student": [1, 2], "teacher": [-2, -1]},
        {"loss": "at", "student": [2, "layer3"], "teacher": [[-1, -2], ["a", "b"]]},
    ]
    kd = kd_methods.config_class("average").model_validate({"features": entries})
    layers = layers_of(kd, 2)
    assert layers.student == [1, 2, "layer3"] and layers.teachers == [[-2, -1], [-2, -1, "a", "b"]]
    first, second = layers.places.features
    assert first.student == [0, 1] and first.teacher == [[0, 1], [0, 1]]
    assert second.student == [1, 2] and second.teacher == [[1, 0], [2, 3]]
    assert kd.features[0].student == [1, 2] and kd.features[1].teacher[1] == ["a", "b"]
    assert kd.without_features().features == [] and layers_of(kd.without_features(), 2) is None


def test_places_of_rows_in_a_split():
    from types import SimpleNamespace

    rows = torch.tensor([7, 2, 5])
    split = SimpleNamespace(rows=rows, labels=torch.zeros(9, dtype=torch.long), images=torch.zeros(9, 2, 2, 3).byte())
    images = Images.__new__(Images)
    images.split, images.rows, images.labels = split, rows, split.labels[rows]
    assert images.places(torch.tensor([5, 7, 2])).tolist() == [2, 0, 1]


def test_buffers_of_the_method_are_left_to_each_process_compiled_or_not():
    method: Any = nn.Module()
    method.register_buffer("bank", torch.zeros(3))
    module = StudentAndMethod(nn.Linear(2, 2), method)  # type: ignore[arg-type]
    for wrapped in (module, torch.compile(module, backend="eager")):
        names = {name for name, _ in wrapped.named_buffers()}
        assert len(names) == 1 and names <= set(module._ddp_params_and_buffers_to_ignore)  # type: ignore[arg-type]
