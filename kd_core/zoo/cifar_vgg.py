"""VGG with batch norm for CIFAR (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556).

Five blocks of 3x3 convolutions, max-pooling after the first three only, global pooling and one linear layer.
"""

from functools import partial

from torch import nn

from kd_core.zoo.base import CifarNet, cifar_cfg, init_he, register

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class CifarVGG(CifarNet):
    def __init__(
        self,
        depth: int,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        width_in = in_chans
        for index, (width, convolutions) in enumerate(zip(WIDTHS, CONVOLUTIONS[depth], strict=True)):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(width_in, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                width_in = width
            self.add_module(f"block{index}", nn.Sequential(*layers))
        self.pool = nn.MaxPool2d(2)
        init_he(self)
        self.finish(
            [("block0",), ("pool", "block1"), ("pool", "block2"), ("pool", "block3"), ("block4",)],
            WIDTHS,
            (1, 2, 4, 8, 8),
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        init_he(self.fc, linear_std=0.01)


_BUILDERS = {f"cifar_vgg{depth}": partial(CifarVGG, depth) for depth in CONVOLUTIONS}

register(__name__, _BUILDERS, {name: cifar_cfg("block0.0") for name in _BUILDERS}, out_indices=(0, 1, 2, 3, 4))
