"""A method on a split's logits: its loss, what it says of each image, and the weights that it gives to the teachers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kd_core import metrics
from kd_core.errors import NonFinite
from kd_methods import KDMethod, StudentOutput, TeacherOutputs

CHUNK = 1024  # images whose own metrics are computed together


@torch.no_grad()
def score(
    method: KDMethod,
    logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    batch_size: int,
    progress: float,
) -> dict[str, float]:
    """accuracy, auroc, loss_ce and loss_total of logits [n,C], teachers' logits [K,n,C], labels int64 [n].

    loss_total is the method's own loss in evaluation mode, averaged over samples in chunks of `batch_size`; it is left
    out where the method needs teachers and there are none.  NonFinite if logits or loss are not finite.
    """
    found = metrics.classification(logits, labels)
    kept = ["accuracy", "auroc", "loss_ce"] + ["auroc_classes_left_out"] * bool(found["auroc_classes_left_out"])
    row = {name: found[name] for name in kept}
    if teacher_logits is None and method.requires_teachers:
        return row
    method.eval()
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for start in range(0, len(labels), batch_size):
        chunk = slice(start, start + batch_size)
        teachers = TeacherOutputs(None if teacher_logits is None else teacher_logits[:, chunk])
        loss, _ = method(StudentOutput(logits[chunk]), teachers, labels[chunk], progress=progress)
        total += loss.double() * len(labels[chunk])
    method.train()
    if not total.isfinite():
        raise NonFinite(f"the evaluation loss is not finite (loss_total of {len(labels)} images)")
    return {**row, "loss_total": float(total) / len(labels)}


@contextmanager
def _as_evaluated(method: KDMethod) -> Iterator[None]:
    """Within the block the method is in evaluation mode and shares nothing with other processes."""
    training, reduce_mean, gather = method.training, method.reduce_mean, method.gather
    method.eval()
    method.reduce_mean = method.gather = lambda values: values
    try:
        yield
    finally:
        method.reduce_mean, method.gather = reduce_mean, gather
        method.train(training)


@torch.no_grad()
def per_image(method: KDMethod, logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
    """The method's metrics per image, each as a batch of one: {name: float32 [N]}.

    logits [N,C], teachers' logits [K,N,C] (None for a method without teachers), labels int64 [N].  In evaluation mode
    and at the end of training (progress 1).  With scope "batch", training averages weights over a batch
    before it uses them; these are the weights before averaging.  Nothing is reduced over processes.
    """

    def one(own: Tensor, others: Tensor | None, label: Tensor) -> dict[str, Tensor]:
        teachers = TeacherOutputs(None if others is None else others[:, None])
        return method(StudentOutput(own[None]), teachers, label[None])[1]

    with _as_evaluated(method):
        dimension = None if teacher_logits is None else 1
        return torch.vmap(one, (0, dimension, 0), chunk_size=CHUNK)(logits.float(), teacher_logits, labels)


@torch.no_grad()
def image_weights(
    method: KDMethod, logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, *, batch_size: int = CHUNK
) -> Tensor | None:
    """The method's weight of each teacher for each image, float32 [K,N]; None for a method without teachers.

    Where all images of a batch share their weights, they are those of batches of `batch_size`, in the order given.
    """
    if teacher_logits is None or not method.requires_teachers:
        return None
    names = [f"teacher/{index}/weight" for index in range(len(teacher_logits))]
    if not method.shared_weights:
        measures = per_image(method, logits, teacher_logits, labels)
        return torch.stack([measures[name] for name in names])
    parts = []
    with _as_evaluated(method):
        for start in range(0, len(labels), batch_size):
            batch = slice(start, start + batch_size)
            student, teachers = StudentOutput(logits[batch].float()), TeacherOutputs(teacher_logits[:, batch])
            _, measures = method(student, teachers, labels[batch])
            parts.append(torch.stack([measures[name] for name in names])[:, None].expand(-1, len(labels[batch])))
    return torch.cat(parts, 1)
