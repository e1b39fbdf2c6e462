"""timm's ImageNet CNNs with a stem for 32-pixel images: `cifar_stem_<name>` for every model of `FAMILIES`.

A network that divides the side of its input by 32 divides it by 8 here, so that 32 pixels end as 4x4: its first two
downsampling steps keep the resolution. Parameters keep timm's names; only a 7x7 or other large first convolution
changes its shape, to 3x3.

family                      stride-1 3x3 first convolution, and
resnet, densenet            no pooling after it
efficientnet, mobilenetv3,  stride 1 in the first stage that has a stride (MobileNetV2's 24 channels, as in
regnet                      the literature's CIFAR versions)

They are models of their own, since a changed stride would load into the original silently and give other logits.
"""

from functools import partial
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from timm.models.densenet import DenseNet
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet
from timm.models.resnet import ResNet
from torch import nn

from kd_core.zoo.base import cifar_cfg, register

PREFIX = "cifar_stem_"
FAMILIES = ("resnet", "densenet", "efficientnet", "mobilenetv3", "regnet")


def build_with_stem(name: str, **kwargs: Any) -> nn.Module:
    """timm's model `name`, freshly initialised, for images [B,3,32,32] and larger."""
    model = timm.create_model(name, pretrained=False, **kwargs)
    match model:
        case ResNet():
            model.conv1 = _first_convolution(model.conv1)
            model.maxpool = nn.Identity()
        case DenseNet():
            model.features.conv0 = _first_convolution(model.features.conv0)
            model.features.pool0 = nn.Identity()
        case EfficientNet() | MobileNetV3():
            model.conv_stem = _first_convolution(model.conv_stem)
            _keep_resolution(next(block for stage in model.blocks for block in stage if _strided(block)))
        case RegNet():
            stem = model.stem
            if isinstance(stem, nn.Conv2d):
                model.stem = _first_convolution(stem)
            else:
                stem.conv = _first_convolution(stem.conv)
            _keep_resolution(model.s1.b1)
        case _:
            raise TypeError(f"{name}: a {type(model).__name__} has no CIFAR stem")
    for info in model.feature_info:
        info["reduction"] = max(1, info["reduction"] // 4)
    return model


def _first_convolution(stem: nn.Module) -> nn.Module:
    """`stem` with stride 1 and 3x3; a deep stem (a sequence of 3x3 convolutions) only loses its stride."""
    conv = stem[0] if isinstance(stem, nn.Sequential) else stem
    if conv.kernel_size == (3, 3):
        conv.stride = (1, 1)
        return stem
    small = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
    small.to(conv.weight.device, conv.weight.dtype)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    return small


def _strided(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The submodules (convolutions, pools, anti-aliasing) that halve the resolution."""
    return [(name, m) for name, m in module.named_modules() if getattr(m, "stride", 1) in (2, (2, 2))]


def _keep_resolution(block: nn.Module) -> None:
    for name, module in _strided(block):
        if hasattr(module, "weight"):
            module.stride = (1, 1)
        else:  # pooling and anti-aliasing serve the downsampling alone
            block.set_submodule(name, nn.Identity())


def _originals() -> list[str]:
    return [name for family in FAMILIES for name in timm.list_models(module=family)]


def _cfg(name: str) -> dict[str, Any]:
    original = get_pretrained_cfg(name)
    return cifar_cfg(original.first_conv, original.classifier)


register(
    __name__,
    {PREFIX + name: partial(build_with_stem, name) for name in _originals()},
    {PREFIX + name: _cfg(name) for name in _originals()},
    out_indices=(0, 1, 2, 3, 4),
)
