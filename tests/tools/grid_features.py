"""Feature losses on the cases of the grid (grid.py): their features, and their projectors from the inputs of a case."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from kd_methods import feature_losses
from kd_methods.feature_losses import Batch, FeatureLoss, crd


def build(name: str, student: list[Tensor], teacher: list[Tensor], **settings: Any) -> FeatureLoss:
    """The loss of these features [B,...], in their dtype."""
    shapes = [[tuple(values.shape[1:]) for values in features] for features in (student, teacher)]
    more = {key: settings.pop(key) for key in ("seed", "num_classes", "train_labels", "earlier") if key in settings}
    layers = {"student": list(range(len(student))), "teacher": list(range(len(teacher)))}
    config = feature_losses.config_class(name)(**layers, **settings)
    loss = feature_losses.loss_class(name)(config, *shapes, **more)
    assert isinstance(loss, FeatureLoss)
    return loss.to(student[0].dtype)


def batch_of(tensors: dict[str, Tensor], **more: Any) -> Batch:
    return Batch(tensors["labels"], tensors["logits_s"], tensors["logits_t"][0], 1.0, **more)


def evaluate(loss: FeatureLoss, student: Any, teacher: Any, batch: Batch, parameters: Any = None) -> Tensor:
    """The loss [B] with these parameters, from what `keep` makes of the teacher's features."""
    kept = loss.keep(tuple(teacher))
    value = functional_call(loss, parameters or {}, (tuple(student), kept, batch))
    assert isinstance(value, Tensor)
    return value


def last_maps(tensors: dict[str, Tensor], teacher: int = 0) -> tuple[Tensor, Tensor]:
    """The last map, or tokens, of the student and of a teacher."""
    if "tokens_s1" in tensors:
        return tensors["tokens_s1"], tensors[f"tokens_t{teacher}_1"]
    return tensors["feat_s2"], tensors[f"feat_t{teacher}_2"]


def review(tensors: dict[str, Tensor]) -> tuple[FeatureLoss, list[Tensor], list[Tensor], dict[str, Tensor]]:
    """The loss of a case, its features, and its parameters by name."""
    student = [*(tensors[f"feat_s{level}"] for level in range(3)), tensors["emb_s"]]
    teacher = [*(tensors[f"preact_t0_{level}"] for level in range(3)), tensors["emb_t"]]
    parameters = {}
    for level in range(4):
        for ours, conv, norm in (("enter", "conv1", "bn1"), ("leave", "conv2", "bn2")):
            parameters[f"{ours}.{level}.0.weight"] = tensors[f"review_{conv}_w{level}"]
            parameters[f"{ours}.{level}.1.norm.weight"] = tensors[f"review_{norm}_w{level}"]
            parameters[f"{ours}.{level}.1.norm.bias"] = tensors[f"review_{norm}_b{level}"]
        if level < 3:
            parameters[f"attention.{level}.weight"] = tensors[f"review_att_w{level}"]
            parameters[f"attention.{level}.bias"] = tensors[f"review_att_b{level}"]
    return build("reviewkd", student, teacher), student, teacher, parameters


def ca_mkd_losses(tensors: dict[str, Tensor], form: str) -> list[FeatureLoss]:
    losses: list[FeatureLoss] = []
    earlier: list[Any] = []
    for k in range(len(tensors["logits_t"])):
        student, teacher = last_maps(tensors, k)
        losses.append(build("ca_mkd", [student], [teacher], form=form, earlier=list(earlier)))
        earlier.append([tuple(teacher.shape[1:])])
    return losses


def ca_mkd_parameters(tensors: dict[str, Tensor], teacher: int) -> dict[str, Tensor]:
    names = {"0.weight": "w", "0.bias": "b", "1.norm.weight": "bn_w", "1.norm.bias": "bn_b"}
    return {f"regressor.{ours}": tensors[f"camkd_reg_{theirs}{teacher}"] for ours, theirs in names.items()}


def ca_mkd_values(losses: list[FeatureLoss], tensors: dict[str, Tensor]) -> list[Tensor]:
    values = []
    for k, loss in enumerate(losses):
        student, teacher = last_maps(tensors, k)
        batch = batch_of(tensors, teacher_classifier=(tensors[f"camkd_cls_w{k}"], tensors[f"camkd_cls_b{k}"]))
        values.append(evaluate(loss, [student], [teacher], batch, ca_mkd_parameters(tensors, k)))
    return values


def crd_case(tensors: dict[str, Tensor]) -> tuple[crd.Loss, dict[str, Tensor], Any]:
    """The loss of a case with its banks and negatives, its parameters, and the arguments of `forward`."""
    student, teacher, index = tensors["emb_s"], tensors["emb_t"], tensors["crd_contrast_index"]
    assert torch.equal(index[:, 0], tensors["crd_index"])
    labels = torch.arange(len(tensors["crd_memory_s"])) % 2
    shapes = [[tuple(values.shape[1:])] for values in (student, teacher)]
    loss = crd.Loss(crd.Config(width=10, negatives=14), *shapes, train_labels=labels, seed=3).to(student.dtype)
    loss.banks.copy_(torch.stack([tensors["crd_memory_s"], tensors["crd_memory_t"]]))
    loss.draw = lambda rows: index[:, 1:]  # type: ignore[method-assign]
    names = {"0.weight": "ws", "0.bias": "bs", "1.weight": "wt", "1.bias": "bt"}
    given = {f"embed.{ours}": tensors[f"crd_{theirs}"] for ours, theirs in names.items()}
    return loss, given, ((student,), loss.keep((teacher,)), batch_of(tensors, rows=tensors["crd_index"]))


def parameters(name: str, key: str, layers: list[int]) -> list[str]:
    """Names of the inputs that are the parameters of a loss, in the order of its parameters."""
    patterns = {
        "fitnet": ["fitnet_reg_w{}", "fitnet_reg_b{}", "fitnet_reg_bn_w{}", "fitnet_reg_bn_b{}"],
        "ofd": ["ofd_w{}", "ofd_bn_w{}", "ofd_bn_b{}"],
    }
    if name == "vid":
        means = [f"vid_w{layer}_{number}" for layer in layers for number in range(3)]
        return means + [f"vid_log_scale{layer}" for layer in layers]
    if name == "mse" and "linear" in key:
        return ["linear_proj_w", "linear_proj_b"]
    if key.startswith("fitnet/plain"):
        return [f"fitnet_plain_w{layer}" for layer in layers]
    given = {"cc": ["cc_ws", "cc_bs", "cc_wt", "cc_bt"], "ickd": ["ickd_w", "ickd_bn_w", "ickd_bn_b"]}
    return given.get(name) or [pattern.format(layer) for layer in layers for pattern in patterns.get(name, [])]
