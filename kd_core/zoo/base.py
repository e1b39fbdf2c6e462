"""What the CIFAR-native networks share: timm's model interface over a declared list of stages."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)


class CifarNet(nn.Module):
    """A classifier made of stages, each a sequence of submodules; a subclass only builds them in `__init__`.

    Stage 0 is the stem. The output of stage i is feature i of `forward_intermediates`, described by
    `feature_info[i]`. The tail (a last norm or convolution) comes between the last stage and the pooling.
    """

    def finish(
        self,
        stages: Sequence[Sequence[str]],
        channels: Sequence[int],
        reductions: Sequence[int],
        *,
        tail: Sequence[str] = (),
        tail_is_norm: bool = False,
        num_features: int | None = None,
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        """Declare the stages (names of submodules, in order) and add the head; the last call in `__init__`."""
        self.stages = [tuple(names) for names in stages]
        self.tail = tuple(tail)
        self.tail_is_norm = tail_is_norm
        self.channels = tuple(channels)
        self.feature_info = [
            {"num_chs": c, "reduction": r, "module": names[-1]}
            for c, r, names in zip(channels, reductions, self.stages, strict=True)
        ]
        self.num_features = self.head_hidden_size = num_features or channels[-1]
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.global_pool, self.head_drop, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
        )

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stem = "|".join(self.stages[0])
        return {
            "stem": rf"^({stem})\.",
            "blocks": r"^(?:layer|block|blocks\.)(\d+)" + ("" if coarse else r"\.(\d+)"),
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head; with `num_classes=0` the output is pooled features, with `global_pool=""` unpooled ones."""
        self.num_classes = num_classes
        like = next(self.parameters())
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool, device=like.device, dtype=like.dtype
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def _run(self, names: Sequence[str], x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x

    def _stage(self, index: int, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and index > 0:
            return checkpoint(self._run, self.stages[index], x, use_reentrant=False)
        return self._run(self.stages[index], x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Stage outputs of images x [B,in_chans,h,w]; the signature and meaning are timm's.

        Args:
            indices: None for all, n for the last n, or a list of indices (negative ones count from the end).
            norm: apply the network's last norm to the last stage, if it has one (wide residual networks).
            stop_early: do not run stages after the last requested one.

        Returns:
            The intermediates, each [B,C,h/r,w/r] with C and r from `feature_info`, in the network's order;
            unless `intermediates_only`, preceded by the output of `forward_features` (or of the last stage
            run if stopped early).
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r}: only 'NCHW' is supported")
        wanted, last_wanted = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        intermediates = []
        for index in range((last_wanted if stop_early else last) + 1):
            x = self._stage(index, x)
            if index in wanted:
                normed = norm and self.tail_is_norm and index == last
                intermediates.append(self._run(self.tail, x) if normed else x)
        if intermediates_only:
            return intermediates
        return (x if index < last else self._run(self.tail, x)), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last requested one; the head and tail are dropped with them, or if requested."""
        wanted, last_wanted = feature_take_indices(len(self.stages), indices)
        truncated = last_wanted < len(self.stages) - 1
        dropped = list(self.stages[last_wanted + 1 :])
        self.stages = self.stages[: last_wanted + 1]
        if truncated or prune_norm or (prune_head and not self.tail_is_norm):
            dropped.append(self.tail)
            self.tail = ()
        used = {name for stage in self.stages for name in stage}  # VGG's stages share their pooling
        for name in {name for stage in dropped for name in stage} - used:
            parent, _, child = name.rpartition(".")
            setattr(self.get_submodule(parent), child, nn.Identity())
        if not self.tail:
            self.num_features = self.channels[last_wanted]
        if truncated or prune_head:
            self.reset_classifier(0, "")
        return wanted

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B,in_chans,h,w] to unpooled features [B,num_features,h',w']."""
        for index in range(len(self.stages)):
            x = self._stage(index, x)
        return self._run(self.tail, x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Unpooled features to logits [B,num_classes] or, if `pre_logits`, embedding [B,num_features]."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def init_he(model: nn.Module, linear_std: float | None = None) -> None:
    """He initialization by fan-out, as in the literature's code (arXiv:1502.01852); norms keep 1 and 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)


def cifar_cfg(first_conv: str | None, classifier: str | None = "fc") -> dict[str, Any]:
    """timm's `default_cfg` for a 32-pixel network with inputs normalized by CIFAR-100's statistics."""
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": CIFAR100_MEAN,
        "std": CIFAR100_STD,
        "first_conv": first_conv,
        "classifier": classifier,
    }


def register(
    module: str,
    builders: Mapping[str, Callable[..., nn.Module]],
    cfgs: Mapping[str, dict[str, Any]],
    out_indices: tuple[int, ...] = (0, 1, 2, 3),
) -> None:
    """Register `builders` (name -> constructor) with timm as models of the module named `module`.

    timm reads the default configurations from the module's `default_cfgs` and the name from the function's
    `__name__`.
    """
    sys.modules[module].default_cfgs = generate_default_cfgs({**cfgs})  # type: ignore[attr-defined]
    for name, builder in builders.items():
        entry = _entry(name, builder, out_indices)
        entry.__name__ = entry.__qualname__ = name
        entry.__module__ = module
        register_model(entry)


def _entry(name: str, builder: Callable[..., nn.Module], out_indices: tuple[int, ...]) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        # The getter extracts features with forward_intermediates, however a network's modules are nested.
        features = {"out_indices": out_indices, "feature_cls": "getter"}
        return build_model_with_cfg(builder, name, pretrained, feature_cfg=features, **kwargs)

    return entry
