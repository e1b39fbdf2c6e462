"""CIFAR-native networks, registered with timm under `cifar_` names by importing this package.

`cifar_*` are the networks of the distillation literature, `cifar_stem_*` are timm's ImageNet networks with a
stem and strides for 32-pixel images. Both are ordinary timm models: `timm.create_model("cifar_resnet20",
num_classes=10)`.
"""

from kd_core.zoo import (
    cifar_densenet,
    cifar_mobilenet,
    cifar_resnet,
    cifar_shufflenet,
    cifar_stem,
    cifar_vgg,
    cifar_wrn,
)

__all__ = [
    "cifar_densenet",
    "cifar_mobilenet",
    "cifar_resnet",
    "cifar_shufflenet",
    "cifar_stem",
    "cifar_vgg",
    "cifar_wrn",
]
