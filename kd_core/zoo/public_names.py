"""Parameter names in public checkpoints of the literature's networks, translated to the zoo's.

The layouts are those of mdistiller, RepDistiller and CA-MKD, which agree, and for ResNets those of akamaster's
pytorch_resnet_cifar10 and kuangliu's pytorch-cifar. Networks not listed have the same names.
"""

import re

from torch import Tensor

# architecture's prefix -> (pattern in the public name, the zoo's); names without a match stay
RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "cifar_wrn_": ((r"^block(\d)\.layer\.", r"layer\1."), (r"\.convShortcut\.", ".shortcut.")),
    "cifar_vgg": ((r"^classifier\.", "fc."),),
    "cifar_mobilenetv2": ((r"^classifier\.0\.", "fc."),),
    "cifar_shufflenet_": ((r"^linear\.", "fc."),),
    "cifar_resnet": ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")),
    "cifar_stem_resnet": ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")),
}


def to_zoo_names(architecture: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict` under the zoo's names; unchanged if it has them or the architecture has no rules."""
    rules = [rule for prefix, rules in RULES.items() if architecture.startswith(prefix) for rule in rules]
    translated = {}
    for name, tensor in state_dict.items():
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        translated[name] = tensor
    return translated
