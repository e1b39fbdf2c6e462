"""Residual networks for CIFAR: three stages of basic blocks (He et al., CVPR 2016, arXiv:1512.03385, section
4.2).

Depth 6n+2. Widths are 16, 32, 64; the `x4` networks of the distillation literature are four times as wide, with
a stem of 32. Where the shape changes, the shortcut is a projection (1x1 convolution and norm); in the `_a`
networks it is every second pixel, padded with zero channels: option A of the paper, without parameters.
`cifar_resnet50` is the ImageNet ResNet-50 with a 3x3 stem, as used in the literature.
"""

from functools import partial

from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn
from torch.nn import functional

from kd_core.zoo.base import CifarNet, cifar_cfg, init_he, register
from kd_core.zoo.cifar_stem import build_with_stem


class ZeroPadded(nn.Module):
    """The shortcut of option A: [B,C,h,w] to [B,C+2p,h/2,w/2], every second pixel, `padding` p zero channels per side.

    After He et al. and GitHub akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class CifarResNet(CifarNet):
    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        project: bool = True,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(widths[0], widths[1], blocks, 1, project)
        self.layer2 = _stage(widths[1], widths[2], blocks, 2, project)
        self.layer3 = _stage(widths[2], widths[3], blocks, 2, project)
        init_he(self)
        self.finish(
            [("conv1", "bn1", "act1"), ("layer1",), ("layer2",), ("layer3",)],
            widths,
            (1, 1, 2, 4),
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


def _stage(width_in: int, width: int, blocks: int, stride: int, project: bool) -> nn.Sequential:
    shortcut: nn.Module | None = None
    if stride != 1 or width_in != width:
        projection = downsample_conv(width_in, width, kernel_size=1, stride=stride)
        shortcut = projection if project else ZeroPadded((width - width_in) // 2)
    first = BasicBlock(width_in, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))


_WIDE = (32, 64, 128, 256)
_BUILDERS = {f"cifar_resnet{depth}": partial(CifarResNet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)}
_BUILDERS |= {
    f"cifar_resnet{depth}_a": partial(CifarResNet, depth, project=False) for depth in (20, 32, 44, 56, 110)
}
_BUILDERS |= {f"cifar_resnet{depth}x4": partial(CifarResNet, depth, _WIDE) for depth in (8, 32)}

register(__name__, _BUILDERS, {name: cifar_cfg("conv1") for name in _BUILDERS})
register(
    __name__,
    {"cifar_resnet50": partial(build_with_stem, "resnet50")},
    {"cifar_resnet50": cifar_cfg("conv1")},
    out_indices=(0, 1, 2, 3, 4),
)
