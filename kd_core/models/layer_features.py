"""Features of a network's layers, in the same pass as its logits: what `kd.features` compares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import kd_methods
from kd_core.config import Config
from kd_core.data.class_weights import class_weights
from kd_core.data.dataset import Data
from kd_core.errors import UserError, did_you_mean, first_line
from kd_core.loop.processes import gather_rows, random_state, set_random_state
from kd_methods import KDMethod, MethodConfig, feature_losses
from kd_methods.feature_losses import FeatureConfig, FeatureLoss, Layer, Shape
from kd_methods.feature_losses._base import Classifier

EMBEDDING = "embedding"


# ------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Layers:
    """The layers that `kd.features` names, each once, in order: of the student, and of each teacher.

    Args:
        places: the method's settings, with places in these lists instead of layers.
        student_head, teacher_head: the losses that need the last linear layer, each with the layers on whose maps it
            uses it.
    """

    student: list[Layer]
    teachers: list[list[Layer]]
    places: MethodConfig
    student_head: dict[str, list[Layer]]
    teacher_head: list[dict[str, list[Layer]]]


def layers_of(kd: MethodConfig, num_teachers: int) -> Layers | None:
    """The layers that a method's settings ask for; None without `features`."""
    entries: list[FeatureConfig] = getattr(kd, "features", [])
    if not entries:
        return None
    student = _unique(layer for entry in entries for layer in entry.student)
    teachers = [_unique(layer for entry in entries for layer in entry.teacher_layers(k)) for k in range(num_teachers)]

    def placed(entry: FeatureConfig) -> FeatureConfig:
        of_teachers = [[own.index(layer) for layer in entry.teacher_layers(k)] for k, own in enumerate(teachers)]
        return entry.model_copy(
            update={"student": [student.index(layer) for layer in entry.student], "teacher": of_teachers}
        )

    classes = {entry.loss: feature_losses.loss_class(entry.loss) for entry in entries}
    of_teachers = [entry for entry in entries if classes[entry.loss].needs_teacher_classifier]
    return Layers(
        student,
        teachers,
        kd.model_copy(update={"features": [placed(entry) for entry in entries]}),
        _by_loss((entry.loss, entry.student) for entry in entries if classes[entry.loss].needs_student_classifier),
        [_by_loss((entry.loss, entry.teacher_layers(k)) for entry in of_teachers) for k in range(num_teachers)],
    )


def _by_loss(pairs: Iterable[tuple[str, list[Layer]]]) -> dict[str, list[Layer]]:
    """The layers of each loss, of all its entries."""
    found: dict[str, list[Layer]] = {}
    for loss, layers in pairs:
        found[loss] = _unique([*found.get(loss, []), *layers])
    return found


def _unique(layers: Iterable[Layer]) -> list[Layer]:
    return list(dict.fromkeys(layers))


# ------------------------------------------------------------------------------------- logits and features at once


class WithFeatures(nn.Module):
    """A network whose forward gives its logits and the features of `layers`, in one pass.

    forward: images [B,3,h,w] to logits [B,C], and for each layer, in order, a map [B,C,H,W], tokens [B,N,D] or an
    embedding [B,D]. The logits are those of the network alone, bit for bit, and BatchNorm is updated once.

    Args:
        layers: an integer is a stage of timm's `forward_intermediates`, negative from the last (the patches of a
            transformer are a map); "embedding" is what the last layer gets, which is timm's
            `forward_head(pre_logits=True)`; another word is a module's name, whose output is taken.
        size: side of its images in pixels, for the pass that finds `shapes`, of one image's features. It is made in
            evaluation mode and changes neither statistics nor random generators.
        who: names the network in messages.
        head_for: the losses that need the last linear layer, each with the layers on whose maps it uses it.

    Raises:
        UserError: a layer that does not exist, or that does not give one tensor for each image; a head that is more
            than average pooling and one linear layer, where a loss needs that.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        size: int,
        who: str,
        head_for: Mapping[str, list[Layer]] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.layers, self.size, self.who = network, list(layers), size, who
        with _undisturbed(network):
            images = self._images()
            self._stages = self._find_stages(images)
            self._modules_of = self._find_modules()
            self.shapes = self._find_shapes(images)
            for loss, maps in (head_for or {}).items():
                self._check_head(loss, maps, images)
        self._has_head = bool(head_for)

    @property
    def classifier(self) -> Classifier | None:
        """Weight [C,D] and bias [C] of the last linear layer, the network's own; None if no loss needs it."""
        if not self._has_head:
            return None
        network: Any = self.network
        last = network.get_classifier()
        return last.weight, last.weight.new_zeros(len(last.weight)) if last.bias is None else last.bias

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        network: Any = self.network
        found: dict[Layer, Any] = {}
        apart = EMBEDDING in self.layers and EMBEDDING not in self._modules_of
        handles = [self._hook(layer, name, found) for layer, name in self._modules_of.items()]
        try:
            if self._stages or apart:
                stages = sorted(set(self._stages.values())) or [0]
                last, maps = network.forward_intermediates(images, indices=stages)
                logits = network.forward_head(last)
                found |= {layer: maps[stages.index(stage)] for layer, stage in self._stages.items()}
            else:
                logits = network(images)
        finally:
            for handle in handles:
                handle.remove()
        if apart:
            value = network.forward_head(last, pre_logits=True)
            found[EMBEDDING] = value.flatten(1) if value.shape[2:] == (1, 1) else value
        return logits, tuple(found[layer] for layer in self.layers)

    def _hook(self, layer: Layer, name: str, found: dict[Layer, Any]) -> Any:
        """Put what the module `name` gives, or for the embedding gets, into `found`."""
        module = self.network.get_submodule(name)

        def keep(value: Any) -> None:
            if layer in found:
                raise self._mistake(layer, "runs several times in a pass; name a module that runs once")
            found[layer] = value

        if layer == EMBEDDING:
            return module.register_forward_pre_hook(lambda _, given: keep(given[0]))
        # A copy, since what follows may change it in place, as many activations do.
        return module.register_forward_hook(
            lambda _, given, output: keep(output.clone() if isinstance(output, Tensor) else output)
        )

    # ---------------------------------------------------------------------------------------- before training

    def _images(self) -> Tensor:
        images = torch.rand(2, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        return images.to(next(self.network.parameters()).device)

    def _find_stages(self, images: Tensor) -> dict[Layer, int]:
        """The index of each stage, from the first."""
        network: Any = self.network
        wanted = [layer for layer in self.layers if isinstance(layer, int)]
        if not wanted:
            return {}
        if not hasattr(network, "forward_intermediates"):
            raise self._mistake(wanted[0], "the network has no forward_intermediates, as timm's have; name a module")
        try:
            logits = network(images)
            last, maps = network.forward_intermediates(images)
            same = torch.equal(network.forward_head(last), logits)
        except Exception as error:
            problem = f"{type(error).__name__}: {first_line(error, 120)}"
            raise self._mistake(wanted[0], f"forward_intermediates fails ({problem}); name a module") from error
        if not same:
            raise self._mistake(wanted[0], "forward_intermediates does not lead to the network's logits; name a module")
        for layer in wanted:
            if not -len(maps) <= layer < len(maps):
                words = f"there is no such stage; there are {len(maps)}: 0 to {len(maps) - 1}, or -{len(maps)} to -1"
                raise self._mistake(layer, words)
        return {layer: layer % len(maps) for layer in wanted}

    def _find_modules(self) -> dict[Layer, str]:
        """The module that is hooked for each layer that is not a stage."""
        network: Any = self.network
        named = {name: module for name, module in network.named_modules() if name}
        found: dict[Layer, str] = {}
        for layer in self.layers:
            if layer == EMBEDDING:
                last = network.get_classifier() if hasattr(network, "get_classifier") else None
                names = [name for name, module in named.items() if module is last and isinstance(last, nn.Linear)]
                if names:
                    found[layer] = names[0]
                elif not hasattr(network, "forward_intermediates"):
                    words = "the network has no get_classifier that gives its last linear layer, as timm's have"
                    raise self._mistake(layer, f"{words}; name a module")
            elif isinstance(layer, str):
                if layer not in named:
                    children = ", ".join(name for name, _ in network.named_children())
                    words = f"there is no such module{did_you_mean(layer, named)}"
                    raise self._mistake(layer, f"{words}; there are {children}, those within them, and {EMBEDDING}")
                found[layer] = layer
        return found

    def _find_shapes(self, images: Tensor) -> list[Shape]:
        try:
            _, features = self(images)
        except KeyError as error:
            raise self._mistake(error.args[0], "does not run in a pass; name a module that does") from None
        for layer, value in zip(self.layers, features, strict=True):
            fits = isinstance(value, Tensor) and value.ndim in ((2,) if layer == EMBEDDING else (2, 3, 4))
            if not fits or len(value) != len(images):
                given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                wanted = "[B,D]" if layer == EMBEDDING else "a map [B,C,H,W], tokens [B,N,D] or [B,D]"
                words = f"gives {given} for {len(images)} images, {wanted} is needed; name a module that gives that"
                raise self._mistake(layer, words)
        return [tuple(value.shape[1:]) for value in features]

    def _mistake(self, layer: Layer, words: str) -> UserError:
        return UserError(f"kd.features: layer {layer!r} of {self.who}: {words}")

    def _check_head(self, loss: str, layers: list[Layer], images: Tensor) -> None:
        if not self._has_linear_head(images):
            raise UserError(
                f"kd.features: loss {loss!r} needs a head of average pooling and one linear layer, which {self.who} "
                "does not have; take another network or another loss"
            )
        logits, features = self(images)
        network: Any = self.network
        for layer in layers:
            value = features[self.layers.index(layer)]
            pooled = value.mean((2, 3)) if value.ndim == 4 else value.mean(1) if value.ndim == 3 else value
            if not _leads_to(pooled, logits, network.get_classifier()):
                words = f"is not what the head pools, and loss {loss!r} puts it through the last linear layer"
                raise self._mistake(layer, f"{words}; name the module that comes before the pooling")

    def _has_linear_head(self, images: Tensor) -> bool:
        """Whether the logits are the last layer's of what average pooling makes of `forward_features`."""
        network: Any = self.network
        needed = ("get_classifier", "forward_features", "forward_head")
        if not all(hasattr(network, name) for name in needed) or not isinstance(network.get_classifier(), nn.Linear):
            return False
        last = network.forward_features(images)
        if not isinstance(last, Tensor) or last.ndim not in (3, 4):
            return False
        logits, places = network.forward_head(last), [(2, 3), (1, 2)] if last.ndim == 4 else [(1,)]
        return any(_leads_to(last.mean(where), logits, network.get_classifier()) for where in places)


def _leads_to(pooled: Tensor, logits: Tensor, last: nn.Linear) -> bool:
    """Whether the linear layer makes `logits` [B,C] of `pooled` [B,D], but for rounding."""
    return pooled.shape[1] == last.in_features and torch.allclose(last(pooled), logits, rtol=1e-3, atol=1e-4)


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the mode and the random generators are as before."""
    device, training = next(network.parameters()).device, network.training
    before = random_state(device)
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
        set_random_state(before, device)


class StudentAndMethod(nn.Module):
    """The student and the method's own parameters as one module, which is prepared, optimized and clipped together.

    forward: that of the student, a WithFeatures.
    """

    def __init__(self, student: WithFeatures, method: KDMethod) -> None:
        super().__init__()
        self.student, self.method = student, method
        # Of the method's buffers each process keeps its own: banks are large, and they are equal anyway.
        # DistributedDataParallel knows them by other names once the module is compiled.
        own = [f"{prefix}method.{name}" for prefix in ("", "_orig_mod.") for name, _ in method.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, own)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        features: tuple[Tensor, tuple[Tensor, ...]] = self.student(images)
        return features


def build_method(
    config: Config,
    data: Data,
    layers: Layers | None,
    student: WithFeatures | None,
    teacher_shapes: Sequence[list[Shape]],
    errors: Tensor | None,
) -> KDMethod:
    """The method of a run; UserError where the classes, the teachers' `errors` [K,N] or the features do not fit.

    teacher_shapes: of one image's features of each teacher, with `kd.features`.
    """
    standardized = [key for key in ("standardize", "norm_temperature") if getattr(config.kd, key, False)]
    if standardized and data.num_classes == 2:
        raise UserError(
            f"kd.{standardized[0]}: with two classes all standardized logits are the same two numbers, which teach "
            "nothing; leave it out"
        )
    labels, shown = data.train.labels[data.train.rows], data.shown
    more: dict[str, Any] = {}
    if layers and student:
        more["student_shapes"] = student.shapes
        more["teacher_shapes"] = list(teacher_shapes)
        more["train_labels"] = shown.labels[shown.rows]
    if config.data.unlabeled:
        more["unlabeled"] = True
    try:
        return kd_methods.build(
            layers.places if layers else config.kd,
            num_classes=data.num_classes,
            label_smoothing=config.training.label_smoothing,
            class_weights=class_weights(config.training.class_weights, labels, data.class_names),
            teacher_errors=errors,
            seed=config.training.seed,
            **more,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def share_over_processes(method: KDMethod, accelerator: Accelerator) -> None:
    """Let a method take means over, and its losses gather, the images of all processes."""
    if accelerator.num_processes == 1:
        return
    method.reduce_mean = lambda values: accelerator.reduce(values, "mean")
    for module in method.modules():
        if isinstance(module, (KDMethod, FeatureLoss)):
            module.gather = partial(gather_rows, accelerator=accelerator)
