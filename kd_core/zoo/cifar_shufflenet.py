"""ShuffleNets for CIFAR, as used in the distillation literature: 1x1 stem without stride, three stages.

V1: Zhang et al., CVPR 2018, arXiv:1707.01083, three groups.  V2: Ma et al., ECCV 2018, arXiv:1807.11164,
width 1.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_core.zoo.base import CifarNet, cifar_cfg, register

STEM_WIDTH = 24
BLOCKS = (4, 8, 4)


class ShuffleV1Block(nn.Module):
    """[B,width_in,h,w] to [B,width,h/stride,w/stride]; with stride 2 the pooled input is part of the output."""

    def __init__(self, width_in: int, width: int, stride: int, groups: int = 3) -> None:
        super().__init__()
        width_out = width - width_in if stride == 2 else width
        inner = width_out // 4
        # The first convolution after the stem has no groups: 24 channels are too few.
        self.first_groups = 1 if width_in == STEM_WIDTH else groups
        self.conv1 = nn.Conv2d(width_in, inner, 1, groups=self.first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width_out, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.channel_shuffle(out, self.first_groups)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(x + out if self.pool is None else torch.cat([out, self.pool(x)], 1))


class ShuffleV2Block(nn.Module):
    """[B,width,h,w] to [B,width,h,w]: half of the channels pass unchanged, then the halves are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, out = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = F.relu(self.bn3(self.conv3(self.bn2(self.conv2(out)))), inplace=True)
        return F.channel_shuffle(torch.cat([kept, out], 1), 2)


class ShuffleV2Down(nn.Module):
    """[B,width_in,h,w] to [B,width,h/2,w/2]: two strided branches of half the width each, shuffled."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(width_in, width_in, 3, stride=2, padding=1, groups=width_in, bias=False)
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv2 = nn.Conv2d(width_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(width_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))), inplace=True)
        return F.channel_shuffle(torch.cat([left, right], 1), 2)


class CifarShuffleNet(CifarNet):
    """Version 1 or 2, with PyTorch's default initialization, as in the literature's code."""

    def __init__(
        self,
        widths: tuple[int, int, int],
        version: int,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, STEM_WIDTH, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.act1 = nn.ReLU(inplace=True)
        width_in = STEM_WIDTH
        for index, (width, blocks) in enumerate(zip(widths, BLOCKS, strict=True), start=1):
            stage: list[nn.Module]
            if version == 1:
                stage = [ShuffleV1Block(width_in, width, stride=2)]
                stage += [ShuffleV1Block(width, width, stride=1) for _ in range(blocks - 1)]
            else:
                stage = [ShuffleV2Down(width_in, width), *(ShuffleV2Block(width) for _ in range(blocks - 1))]
            self.add_module(f"layer{index}", nn.Sequential(*stage))
            width_in = width
        if version == 2:
            self.conv2 = nn.Conv2d(width_in, 1024, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(1024)
            self.act2 = nn.ReLU(inplace=True)
        self.finish(
            [("conv1", "bn1", "act1"), ("layer1",), ("layer2",), ("layer3",)],
            (STEM_WIDTH, *widths),
            (1, 2, 4, 8),
            tail=("conv2", "bn2", "act2") if version == 2 else (),
            num_features=1024 if version == 2 else None,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


_BUILDERS = {
    "cifar_shufflenet_v1": partial(CifarShuffleNet, (240, 480, 960), 1),
    "cifar_shufflenet_v2": partial(CifarShuffleNet, (116, 232, 464), 2),
}

register(__name__, _BUILDERS, {name: cifar_cfg("conv1") for name in _BUILDERS})
