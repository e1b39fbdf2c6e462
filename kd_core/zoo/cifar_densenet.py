"""DenseNet-121 for CIFAR with growth rate 12 (Huang et al., CVPR 2017, arXiv:1608.06993).

The first convolution is 3x3 with 24 channels and stride 1, followed directly by the first dense block: no
norm, no activation, no pooling. Parameter names are those of timm's densenet without `features.norm0`, as in
the public checkpoint edadaltocg/densenet121_cifar100.
"""

from typing import Any

from timm.models.densenet import DenseNet
from torch import nn

from kd_core.zoo.base import cifar_cfg, register


def _densenet121(**kwargs: Any) -> DenseNet:
    model = DenseNet(growth_rate=12, block_config=(6, 12, 24, 16), **kwargs)
    features = model.features
    features.conv0 = nn.Conv2d(model.in_chans, 24, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(features.conv0.weight)
    features.norm0 = nn.Identity()
    features.pool0 = nn.Identity()
    feature_info: list[dict[str, Any]] = model.feature_info
    for info in feature_info:
        info["reduction"] = max(1, info["reduction"] // 4)
    return model


register(
    __name__,
    {"cifar_densenet121": _densenet121},
    {"cifar_densenet121": cifar_cfg("features.conv0", "classifier")},
    out_indices=(0, 1, 2, 3, 4),
)
