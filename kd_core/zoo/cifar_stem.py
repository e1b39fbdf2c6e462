"""timm's ImageNet CNNs with a stem for 32-pixel images: `cifar_stem_<name>` for every model of `FAMILIES`.

The first two downsampling steps keep the resolution, so a network with a total stride of 32 has 8 here, and the
last feature map of a 32-pixel image is 4x4. Parameters keep timm's names; only a 7x7 or other large first
convolution changes its shape, to 3x3.

all families                        3x3 first convolution with stride 1, and
resnet, densenet                    no pooling after it
efficientnet, mobilenetv3, regnet   stride 1 in the first stage that has a stride (in MobileNetV2 the one with
                                    24 channels, as in the literature's CIFAR versions)

They have their own names, since weights for a changed stride would load into the original silently and give
other logits.
"""

from functools import partial
from typing import Any

import timm
from timm.models import PretrainedCfg, get_pretrained_cfg
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
    """timm's model `name` with random weights, for images [B,3,32,32] and larger."""
    model: Any = timm.create_model(name, pretrained=False, **kwargs)
    if isinstance(model, ResNet):
        _ease(model, "conv1")
        model.set_submodule("maxpool", nn.Identity())
    elif isinstance(model, DenseNet):
        _ease(model, "features.conv0")
        model.set_submodule("features.pool0", nn.Identity())
    elif isinstance(model, EfficientNet | MobileNetV3):
        _ease(model, "conv_stem")
        _keep_resolution(
            next(block for stage in model.blocks.children() for block in stage.children() if _strided(block))
        )
    elif isinstance(model, RegNet):
        _ease(model, "stem" if isinstance(model.stem, nn.Conv2d) else "stem.conv")
        _keep_resolution(model.get_submodule("s1.b1"))
    else:
        raise TypeError(f"{name}: a {type(model).__name__} has no CIFAR stem")
    for info in model.feature_info:
        info["reduction"] = max(1, info["reduction"] // 4)
    return model


def _ease(model: nn.Module, name: str) -> None:
    """Make the first convolution 3x3 with stride 1; a deep stem (several 3x3 convolutions) only loses its stride."""
    stem = model.get_submodule(name)
    conv: Any = stem[0] if isinstance(stem, nn.Sequential) else stem
    if conv.kernel_size == (3, 3):
        conv.stride = (1, 1)
        return
    small = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule(name, small.to(conv.weight.device, conv.weight.dtype))


def _strided(module: nn.Module) -> list[tuple[str, Any]]:
    """The submodules (convolutions, pools, anti-aliasing) that halve the resolution."""
    return [(name, m) for name, m in module.named_modules() if getattr(m, "stride", 1) in (2, (2, 2))]


def _keep_resolution(block: nn.Module) -> None:
    for name, module in _strided(block):
        if hasattr(module, "weight"):
            module.stride = (1, 1)
        else:  # pooling and anti-aliasing only downsample
            block.set_submodule(name, nn.Identity())


def _originals() -> list[str]:
    return [name for family in FAMILIES for name in timm.list_models(module=family)]


def _cfg(name: str) -> dict[str, Any]:
    original = get_pretrained_cfg(name) or PretrainedCfg()
    return cifar_cfg(original.first_conv, original.classifier)


register(
    __name__,
    {PREFIX + name: partial(build_with_stem, name) for name in _originals()},
    {PREFIX + name: _cfg(name) for name in _originals()},
    out_indices=(0, 1, 2, 3, 4),
)
