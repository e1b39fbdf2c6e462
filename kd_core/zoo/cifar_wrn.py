"""Wide residual networks, `cifar_wrn_<depth>_<width factor>` (Zagoruyko and Komodakis, BMVC 2016,
arXiv:1605.07146).

Pre-activation blocks; depth 6n+4. The last norm and ReLU come after the last stage, so a stage's output is
the raw residual sum; `forward_intermediates(norm=True)` applies them to the last one.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kd_core.zoo.base import CifarNet, cifar_cfg, init_he, register


class WideBlock(nn.Module):
    """[B,width_in,h,w] to [B,width,h/stride,w/stride]."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        project = stride != 1 or width_in != width
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        # A projection starts from the activated input, an identity from the raw one.
        residual = x if self.shortcut is None else self.shortcut(active)
        return residual + self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))


class CifarWideResNet(CifarNet):
    def __init__(
        self,
        depth: int,
        factor: int,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        widths = (16, 16 * factor, 32 * factor, 64 * factor)
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.act1 = nn.ReLU(inplace=True)
        init_he(self)
        self.finish(
            [("conv1",), ("layer1",), ("layer2",), ("layer3",)],
            widths,
            (1, 1, 2, 4),
            tail=("bn1", "act1"),
            tail_is_norm=True,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(WideBlock(width_in, width, stride), *(WideBlock(width, width, 1) for _ in range(blocks - 1)))


_BUILDERS = {f"cifar_wrn_{depth}_{factor}": partial(CifarWideResNet, depth, factor)
             for depth in (16, 40) for factor in (1, 2)}  # fmt: skip

register(__name__, _BUILDERS, {name: cifar_cfg("conv1") for name in _BUILDERS})
