"""Contrastive representation distillation (CRD).  Tian, Krishnan and Isola, ICLR 2020, arXiv:1910.10699.

    l_b = sum over both networks of  - log h(b)/(h(b) + n) - sum over negatives j of log n/(h(j) + n)
    h(j) = exp(<e_b, m_j> / tau) / Z,  n = negatives / M,  e = W f / ||W f||

e is the embedding of one network, m the other network's memory bank of M rows, one for each image of the training
split; the negatives are images of other classes. Z is the mean of exp over the first batch times M, constant from
then on, one for each network. After its use a batch's rows of both banks become momentum m + (1 - momentum) e, of
unit length. Width 128, 16384 negatives or as many as there are, tau 0.07, momentum 0.5.

The negatives of an image depend on the seed, its row and the number of the update alone. They are drawn without
repetition: the rows of other classes, in the order of their classes, are cut into as many equal parts as there are
negatives, from a random start; one row of each part is drawn. So each row is as likely as any other, as when all are
drawn at random, and each class has its share. The banks start at random unit vectors (of about unit length in the
authors' code). Scores against all M rows are one product, of which those needed are taken: copying B x negatives rows
costs far more. In evaluation nothing changes. Kept of a teacher: its embedding.
"""

import math
from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import Batch, FeatureConfig, FeatureLoss, unit
from kd_methods.feature_losses._projectors import seeded

EPSILON = 1e-7  # added to n where it is added to h, as in the authors' code
# Stafford's variant 13 of the finalizer of 64-bit integers, the one of SplitMix64: shifts and multipliers, as int64.
MIX = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))
ODD = -0x61C8864680B583EB  # 2^64 over the golden ratio


class Config(FeatureConfig):
    equation = "contrastive loss (CRD: width {config.width}, {config.negatives} negatives, tau {config.tau:g})"
    uses_labels = True

    loss: Literal["crd"] = "crd"
    weight: float = Field(default=0.8, ge=0, description="factor of this loss")
    width: int = Field(default=128, ge=1, description="of the common space of both embeddings")
    negatives: int = Field(default=16384, ge=1, description="images of other classes, at most as many as there are")
    tau: float = Field(default=0.07, gt=0, description="temperature of the inner products")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="of the memory banks")


class Loss(FeatureLoss):
    config: Config
    kinds = ("embedding",)
    number = 1
    large = ("banks",)
    before: tuple[Tensor, Tensor]  # the rows that the last update has changed, and what they were
    embed: Any  # linear layers of the student's and of the teacher's embedding
    banks: Tensor  # [2,M,width], of the student and of the teacher
    log_scale: Tensor  # log Z [2] for the student's embedding and for the teacher's, valid after the first update
    updates: Tensor  # int64 []
    classes: Tensor  # int64 [M], of each row
    order: Tensor  # int64 [M], rows in the order of their classes
    first: Tensor  # int64 [C + 1], where each class starts in `order`

    def __init__(self, *args: Any, train_labels: Tensor | None = None, **more: Any) -> None:
        super().__init__(*args, train_labels=train_labels, **more)
        if train_labels is None:
            raise ValueError("the loss draws images of other classes: it needs train_labels, one for each row")
        config, rows = self.config, len(train_labels)
        counts = torch.bincount(train_labels)
        self.negatives = min(config.negatives, rows - int(counts.max()))
        if self.negatives == 0:
            raise ValueError("the loss draws images of other classes; all train_labels are the same")
        with seeded(self.seed):
            widths = self.student_shapes[0][0], self.teacher_shapes[0][0]
            self.embed = torch.nn.ModuleList(torch.nn.Linear(width, config.width) for width in widths)
            banks = torch.nn.functional.normalize(torch.randn(2, rows, config.width), dim=2)
        self.register_buffer("banks", banks)
        self.register_buffer("log_scale", torch.zeros(2))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        for name, values in (
            ("classes", train_labels.to(torch.int64).clone()),
            ("order", train_labels.argsort(stable=True)),
            ("first", torch.nn.functional.pad(counts.cumsum(0), (1, 0))),
        ):
            self.register_buffer(name, values, persistent=False)

    def draw(self, rows: Tensor) -> Tensor:
        """Rows of negatives [B,negatives] of images at `rows` int64 [B]."""
        classes = self.classes[rows]
        start, stop = self.first[classes, None], self.first[classes + 1, None]  # [B,1], of the images' own classes
        others = len(self.order) - (stop - start)  # how many rows there are of other classes
        key = mixed(mixed(mixed(torch.full_like(rows, self.seed)) + self.updates) + rows)[:, None]
        part = torch.arange(self.negatives + 1, device=rows.device)
        random = high((key ^ mixed(part)) * ODD)  # [B,negatives + 1], 32 bits each
        cuts = part * others // self.negatives
        place = cuts[:, :-1] + below(cuts.diff(dim=1), random[:, 1:]) + below(others, random[:, :1])
        place = torch.where(place < others, place, place - others)  # around the end
        return self.order[torch.where(place < start, place, place + (stop - start))]

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        if batch.rows is None:
            raise ValueError("crd needs rows: each image's row in the training split")
        index = torch.cat([batch.rows[:, None], self.draw(batch.rows)], 1)  # [B,1 + negatives], the positive first
        pairs = zip(self.embed, (student[0], kept[0]), strict=True)
        embedded = torch.stack([unit(layer(values), 1) for layer, values in pairs])  # [2,B,width]
        # The gradient is taken here, as the bank changes before the backward pass. Its product with
        # embedded - constant, which is 0, carries it on; an image's loss depends on its own embeddings alone.
        leaf, constant = embedded.detach().requires_grad_(torch.is_grad_enabled()), embedded.detach()
        scores = torch.stack([self.scores(leaf[side], self.banks[1 - side], index) for side in (0, 1)])  # [2,B,..]
        everywhere = self.gather(torch.cat([*constant, scores.detach().logsumexp(2).T], 1))  # [PB,2 width + 2]
        mean = everywhere[:, -2:].logsumexp(0) - math.log(len(everywhere) * index.shape[1])
        log_scale = torch.where(self.updates > 0, self.log_scale, mean + math.log(len(self.classes)))
        loss = self.contrast(scores - log_scale[:, None, None])
        if leaf.requires_grad:
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            loss = loss.detach() + ((embedded - constant) * gradient).sum((0, 2))
        if self.training:
            self.update(everywhere[:, :-2], self.gather(batch.rows), log_scale)
        return loss

    def scores(self, embedded: Tensor, bank: Tensor, index: Tensor) -> Tensor:
        """Inner products over tau [B,1 + negatives] of embeddings [B,width] with the rows `index` of a bank."""
        return (embedded / self.config.tau @ bank.T).gather(1, index)

    def contrast(self, log_h: Tensor) -> Tensor:
        """The loss [B] of log h [2,B,1 + negatives], summed over both networks."""
        negatives = log_h.shape[2] - 1
        noise = negatives / len(self.classes)
        odds, softplus = log_h - math.log(noise + EPSILON), torch.nn.functional.softplus
        constant = 2 * negatives * math.log1p(EPSILON / noise)
        return (softplus(-odds[:, :, 0]) + softplus(odds[:, :, 1:]).sum(2)).sum(0) + constant

    def update(self, embedded: Tensor, rows: Tensor, log_scale: Tensor) -> None:
        """Mix embeddings [B,2 width] of images at `rows` into the banks, in place."""
        with torch.no_grad():
            new = embedded.unflatten(1, (2, -1)).transpose(0, 1)
            self.before = rows, self.banks[:, rows]
            mix = self.config.momentum * self.before[1] + (1 - self.config.momentum) * new
            self.banks.index_copy_(1, rows, torch.nn.functional.normalize(mix, dim=2))
            self.log_scale.copy_(log_scale)
            self.updates.add_(1)

    def take_back(self, skipped: Tensor) -> None:
        rows, before = self.before
        self.banks.index_copy_(1, rows, torch.where(skipped, before, self.banks[:, rows]))


def mixed(values: Tensor) -> Tensor:
    """int64 values, each replaced by a pseudorandom one that depends on it alone."""
    values = values + ODD
    for shift, factor in MIX:
        values = (values ^ logical_shift(values, shift)) * factor
    return values ^ logical_shift(values, 31)


def logical_shift(values: Tensor, shift: int) -> Tensor:
    """Bits of int64 values shifted to the right, zeros from the left."""
    return (values >> shift) & ((1 << (64 - shift)) - 1)


def high(values: Tensor) -> Tensor:
    """The upper 32 bits of int64 values, from 0 to 2^32 - 1."""
    return logical_shift(values, 32)


def below(bounds: Tensor, random: Tensor) -> Tensor:
    """`random` of 32 bits scaled to 0 .. bounds - 1."""
    return bounds * random >> 32
