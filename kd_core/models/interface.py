"""Checks of what networks and methods must provide, before training; CONTRIBUTING.md lists it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import kd_methods
from kd_core.config import own_code
from kd_core.errors import UserError
from kd_core.models.method_on_split import image_weights


def require_module(network: Any, who: str) -> None:
    """UserError, which begins with `who`, unless `network` is an nn.Module."""
    if not isinstance(network, nn.Module):
        raise UserError(f"{who}: gives a {type(network).__name__}, a torch.nn.Module is needed")


@torch.no_grad()
def check_network(network: nn.Module, channels: int, size: int, num_classes: int, who: str) -> None:
    """UserError, which begins with `who`, unless two images [2,channels,size,size] give logits [2,num_classes].

    In evaluation mode; no weight, statistic or random generator changes.
    """
    training = network.training
    try:
        with torch.random.fork_rng(devices=[]):
            found = network.eval()(torch.rand(2, channels, size, size))
    except Exception as error:
        raise UserError(f"{who}: fails on images [2, {channels}, {size}, {size}]: {own_code.told(error)}") from error
    finally:
        network.train(training)
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"{who}: its state_dict holds {name!r}, a {type(value).__name__}; checkpoints hold tensors")
    require_logits(found, 2, num_classes, who, "for two images", "one number per class of the data (num_classes)")


def require_logits(output: Any, count: int, num_classes: int, who: str, when: str, remedy: str) -> None:
    """UserError, which begins with `who`, unless `output` is one tensor of logits [count,num_classes]."""
    if isinstance(output, Tensor) and output.shape == (count, num_classes) and output.is_floating_point():
        return
    raise UserError(
        f"{who}: gives {_described(output)} {when}, one tensor of logits [{count}, {num_classes}] is needed; {remedy}"
    )


def _described(output: Any) -> str:
    """What a network returns, by type and shape."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    kind = type(output).__name__
    if isinstance(output, dict):
        parts = [f"{key}: {_described(value)}" for key, value in list(output.items())[:4]]
    elif isinstance(output, (list, tuple)):
        parts = [_described(value) for value in output[:4]]
    else:
        return f"a {kind}"
    return f"a {kind} of {len(output)} ({', '.join(parts)}{', ...' if len(output) > 4 else ''})"


def check_method(config: kd_methods.MethodConfig, num_teachers: int, num_classes: int) -> None:
    """UserError unless a user's own method or loss returns what training and its report need.

    These are a loss [] with a gradient, and the metrics `loss_label`, `loss_distill`, `kd_weight` and
    `teacher/K/weight` of each teacher; all of them also per image under torch.vmap.  It has no parameters to
    train, unless there are features.  No random generator changes.
    """
    loss = getattr(config, "loss", "")
    own = own_code.provider(own_code.METHOD, config.type) or own_code.provider(own_code.LOSS, str(loss))
    if own is None:
        return
    who = f"kd.type {config.type!r}, kd.loss {loss!r} ({own.path.name})" if loss else f"kd.type {config.type!r}"
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, num_classes, generator=generator, requires_grad=True)
    labels = torch.randint(num_classes, (4,), generator=generator)
    try:
        method = kd_methods.build(config.without_features(), num_classes=num_classes)
        teachers = torch.randn(num_teachers, 4, num_classes, generator=generator) if method.requires_teachers else None
        own_output, theirs = kd_methods.StudentOutput(student), kd_methods.TeacherOutputs(teachers)
        if config.second_view == "required":
            own_output, theirs = own_output._replace(second=student), theirs._replace(second=teachers)
        value, measures = method(own_output, theirs, labels, 0.5)
        wanted = ["loss_label", "loss_distill", "kd_weight"]
        wanted += [f"teacher/{index}/weight" for index in range(num_teachers)] if method.requires_teachers else []
        if missing := [name for name in wanted if name not in measures]:
            raise UserError(f"{who}: lacks the metric {missing[0]!r}; kd_methods.common_metrics gives those needed")
        if value.shape != () or not value.requires_grad:
            raise UserError(f"{who}: its loss has shape {list(value.shape)}; one number with a gradient is needed")
        learned = [name for name, value in method.named_parameters() if value.requires_grad]
        if learned and not getattr(config, "features", []):
            raise UserError(
                f"{who}: has the parameter {learned[0]!r}, and a method's parameters are trained only with "
                "kd.features; keep it as a buffer (register_buffer), or make it a setting"
            )
        image_weights(method, student.detach(), teachers, labels)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{who}: fails on a batch of four images, or image by image under torch.vmap: {own_code.told(error)}"
        ) from error
