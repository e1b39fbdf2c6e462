"""Weights by agreement in gradient space (AEKD).  Du et al., Agree to Disagree, NeurIPS 2020.

    v minimizes |sum_k v_k g_k|^2,  0 <= v_k <= max(cap, 1 / K),  sum_k v_k = 1
    g_k: gradient of mean_b l_kb with respect to the student's logits

All samples of a step share v; the equation of the loss stands in `_weighted.py`. The minimum is exact, where the
authors' solver stops early. `gradient: batch_mean`, as in their code: g_k is averaged over the samples first, a vector
of C numbers. `flat`: all B C numbers. `normalized`: g_k are scaled to length 1, and v_k is divided by their length
after; the cap holds before. For the logit loss kd, g_kb = T (softmax(s_b / T) - softmax(t_kb / T)) / B; for others it
is computed by differentiation. With several processes it is the gradient of the global batch.
"""

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kd_methods import logit_losses
from kd_methods._base import Logits, StudentOutput, TeacherOutputs, views_of
from kd_methods._config import LogitConfig
from kd_methods._simplex import shortest_combination
from kd_methods._torch import Tensor, torch
from kd_methods._weighted import PublishedConfig, WeightedMethod

NOISE = 1e-24  # squared length of a gradient that is nothing but rounding: teachers then get equal weights


class Parameters(BaseModel):
    """Parameters of AEKD."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    cap: float = Field(default=0.6, gt=0, le=1, description="largest weight of a teacher; at least 1 / K holds")
    gradient: Literal["batch_mean", "flat"] = Field(
        default="batch_mean", description="compare gradients averaged over the samples, or of all samples"
    )
    normalized: bool = Field(default=False, description="scale the gradients to length 1 first")


class Config(PublishedConfig):
    uses_labels = False

    type: Literal["aekd"] = "aekd"
    aekd: Parameters = Field(default=Parameters(), description="parameters of the weights")


class Method(WeightedMethod):
    shared_weights = True
    config: Config
    words = "AEKD weight of the step"

    def weigh(self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float) -> Tensor:
        assert teachers.logits is not None
        config, count = self.config.aekd, len(teachers.logits)
        # In fp64: where teachers nearly agree, the minimum multiplies rounding errors.
        right = labels.double() if labels.ndim == 2 else labels
        views = [(own.detach().double(), others.double()) for own, others in views_of(student, teachers)]
        gradients = self._gradients(views, right, progress)
        if config.gradient == "batch_mean":
            mean = gradients.mean(1)  # [K,C]
            mean = self.reduce_mean(mean.flatten()).view_as(mean)
            gram = mean @ mean.T
        else:
            flat = gradients.flatten(1)
            gram = self.reduce_mean((flat @ flat.T).flatten()).view(count, count)
        gram = gram + torch.eye(count, dtype=gram.dtype, device=gram.device) * NOISE
        if not config.normalized:
            weights = shortest_combination(gram, config.cap)
        else:
            length = gram.diagonal().sqrt()
            weights = shortest_combination(gram / length / length[:, None], config.cap) / length
            weights = weights / weights.sum()
        return weights.to(teachers.logits.dtype).unsqueeze(1)

    def _gradients(self, views: list[Logits], labels: Tensor, progress: float) -> Tensor:
        """B times the gradients [K,B,C] of mean_b l_kb with respect to the student's logits [B,C], all in fp64.

        With two views those of both, [K,B,2C].
        """
        if self._is_plain_kd():
            ((student, teachers),) = views
            temperature = self.config.temperature
            return temperature * ((student / temperature).softmax(-1) - (teachers / temperature).softmax(-1))
        with torch.inference_mode(False), torch.enable_grad():  # in evaluation too
            labels, all_teachers = labels.clone(), [others.clone() for _, others in views]
            own = [student.clone().expand_as(others).contiguous().requires_grad_() for student, others in views]

            def losses_to(some: list[Tensor], own: list[Tensor]) -> Tensor:  # of these teachers [k,B,C]: [k,B]
                return self.loss_of_views(list(zip(own, some, strict=True)), labels, progress)

            if self._temperatures is None:
                each = [others.unsqueeze(1) for others in all_teachers]
                losses = self._vmap(losses_to, (0, 0))(each, own)
            else:  # which the logit loss knows by the teacher's place: to all teachers, and of these the own one
                losses = self._vmap(losses_to, (None, 0))(all_teachers, own).diagonal()
            gradients = torch.autograd.grad(losses.sum(), own)
        return (torch.cat(gradients, -1) if len(gradients) > 1 else gradients[0]).detach()

    def _vmap(self, function: Callable[..., Tensor], in_dims: tuple[int | None, ...]) -> Callable[..., Tensor]:
        """torch.vmap of a function of lists of tensors; one call after another where the logit loss gathers."""
        if not getattr(self.config.loss_config, "gather", False):
            return torch.vmap(function, in_dims)

        def mapped(*lists: list[Tensor]) -> Tensor:  # torch.vmap has no rule for an all-gather
            def of(k: int) -> list[list[Tensor]]:
                return [some if dim is None else [x[k] for x in some] for some, dim in zip(lists, in_dims, strict=True)]

            return torch.stack([function(*of(k)) for k in range(len(lists[-1][0]))])

        return mapped

    def _is_plain_kd(self) -> bool:
        """Whether the logit loss is `kd` and no setting changes its logits, labels or weights."""
        modifiers = LogitConfig.model_fields.keys() - {"type", "temperature", "loss", "features", *logit_losses.OWN}
        changed = any(getattr(self.config, key) != LogitConfig.model_fields[key].default for key in modifiers)
        return self.config.loss == "kd" and not changed
