"""MobileNetV2 at half width, as used in the distillation literature (Sandler et al., CVPR 2018,
arXiv:1801.04381).

Differences from the paper: ReLU instead of ReLU6, an expansion convolution in the first block too, stride 1
in the second stage, and exactly half the widths (no rounding to multiples of 8). The last feature map of a
32-pixel image is 2x2.
"""

from torch import Tensor, nn

from kd_core.zoo.base import CifarNet, cifar_cfg, init_he, register

# expansion, width, blocks, stride of the first block
STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


class InvertedResidual(nn.Module):
    """[B,width_in,h,w] to [B,width,h/stride,w/stride]."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.identity = stride == 1 and width_in == width
        self.conv = nn.Sequential(
            *_conv_norm_relu(width_in, inner, 1),
            *_conv_norm_relu(inner, inner, 3, stride, groups=inner),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.identity else self.conv(x)


class CifarMobileNetV2(CifarNet):
    def __init__(
        self, num_classes: int = 100, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_norm_relu(in_chans, 16, 3, stride=2))
        width_in = 16
        self.blocks = nn.Sequential()
        for expansion, width, blocks, stride in STAGES:
            stage = nn.Sequential()
            for index in range(blocks):
                stage.append(InvertedResidual(width_in, width, stride if index == 0 else 1, expansion))
                width_in = width
            self.blocks.append(stage)
        self.conv2 = nn.Sequential(*_conv_norm_relu(width_in, 1280, 1))
        init_he(self)
        self.finish(
            [
                ("conv1",),
                ("blocks.0", "blocks.1"),
                ("blocks.2",),
                ("blocks.3", "blocks.4"),
                ("blocks.5", "blocks.6"),
            ],
            (16, 12, 16, 48, 160),
            (2, 2, 4, 8, 16),
            tail=("conv2",),
            num_features=1280,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        init_he(self.fc, linear_std=0.01)


def _conv_norm_relu(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


register(
    __name__,
    {"cifar_mobilenetv2": CifarMobileNetV2},
    {"cifar_mobilenetv2": cifar_cfg("conv1.0")},
    out_indices=(0, 1, 2, 3, 4),
)
