"""What precision, memory format and folded BatchNorm change: training steps of students, passes of frozen teachers.

Training steps of batch 64 in bf16 against float32, and channels last against channels first; passes over 64 images of a
teacher whose BatchNorm is folded into its convolutions, with the largest difference of its logits in fp16 units.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from benchmarks import _runs
from benchmarks._measure import Figure, Options, Result, compare, interleave, seconds_of
from kd_core.config import Layer, resolve
from kd_core.models import build as models
from kd_core.run.precision import training_step

STUDENTS: list[dict[str, Any]] = [{"name": "cifar_resnet8"}, {"name": "cifar_resnet8x4"}, _runs.TINY]
TEACHERS = ("cifar_resnet56", "cifar_resnet32x4", "cifar_wrn_40_2")
CPU = torch.device("cpu")


def run(options: Options) -> list[Result]:
    results: list[Result] = []
    students = STUDENTS if not options.quick else [_runs.TINY]
    for student in students:
        step = {layout: step_of(options, student, channels_last=layout == "last") for layout in ("last", "first")}
        values = interleave(
            {
                "bf16": lambda: step["last"]("bf16"),  # noqa: B023 - called before the next student
                "float32": lambda: step["last"]("no"),  # noqa: B023
                "channels first": lambda: step["first"]("no"),  # noqa: B023
            },
            options.pairs,
        )
        name = student["name"]
        results.append(named(f"{name}: ", compare(values, "bf16", "float32", "s per step")))
        results.append(named(f"{name}: channels last: ", compare(values, "float32", "channels first", "s per step")))
    for name in TEACHERS if not options.quick else ("cifar_resnet8",):
        results += folded(name, options)
    return results


def step_of(options: Options, student: dict[str, Any], *, channels_last: bool) -> Callable[[str], float]:
    values = {
        "model": student, "kd": {"type": "baseline"}, "data": {"source": "digits", "batch_size": options.size(64, 8)},
        "training": {"channels_last": channels_last, "optimizer": "sgd"},
    }  # fmt: skip
    return training_step(resolve([Layer("benchmark", values)]).config, CPU)


def named(words: str, result: Any) -> Any:
    result.name = words + result.name
    return result


@torch.inference_mode()
def folded(name: str, options: Options) -> list[Result]:
    """Passes of a frozen network as it is, and with BatchNorm folded into the convolutions before it."""
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=100).eval()
    for module in model.modules():  # as after training, not the neutral values of a new network
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for tensor, low, high in ((module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0)):
                tensor.uniform_(low, high)
    images = torch.randn(options.size(64, 8), 3, 32, 32).to(memory_format=torch.channels_last)
    networks = {"as it is": model, "folded": fuse(copy.deepcopy(model))}
    networks = {key: one.to(memory_format=torch.channels_last) for key, one in networks.items()}
    plain, other = (network(images) for network in networks.values())
    unit = 2.0 ** (plain.abs().clamp_min(2.0**-14).log2().floor() - 10)  # of fp16 at each logit
    passes = {key: seconds_of(partial(one, images)) for key, one in networks.items()}
    values = interleave(passes, options.pairs)
    return [
        named(f"{name}: ", compare(values, "folded", "as it is", "s per pass")),
        Figure(f"{name}: largest difference", float(((plain - other).abs() / unit).max()), "fp16 units"),
    ]
