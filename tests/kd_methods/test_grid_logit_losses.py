"""Logit losses, values and gradients, against what their authors' code gives (tests/golden/grid.json)."""

import re
from collections.abc import Callable
from typing import Any

import grid
import pytest
import torch
from torch import Tensor

import kd_methods
from kd_methods import StudentOutput, TeacherOutputs
from kd_methods.logit_losses import kd, mlkd

Inputs = dict[str, Tensor]
Function = Callable[[Inputs], Tensor]

# Keys that are no logit losses, by how they begin: other tests hold them.
OTHERS = (
    "at/", "ca_mkd_feature/", "cat_kd/", "cc/", "crd/", "deit/", "feature_given_weights", "fitnet/", "hcl/", "ickd/",
    "nst/", "ofa/", "ofd/", "pkt/", "reviewkd/", "rkd/", "simkd/", "sp/", "timm/", "vid/", "weighting/",
)  # fmt: skip
NUMBER = r"(-?[\d.]+)"


def term(*, two_views: bool = False, **config: Any) -> Function:
    """The bare logit term of teacher 0, through a method; `config` may give the label term a weight."""
    method = kd_methods.build({"type": "average", "hard_weight": 0.0, "soft_weight": 1.0, **config})

    def function(x: Inputs) -> Tensor:
        student, teachers = StudentOutput(x["logits_s"]), TeacherOutputs(x["logits_t"][:1])
        if two_views:
            student = student._replace(second=x["logits_s_strong"])
            teachers = teachers._replace(second=x["logits_t_strong"][None])
        return method(student, teachers, x["labels"], 1.0)[0]

    return function


def of_loss(loss: str, temperature: str | None = None, standardize: bool = False, **parameters: str) -> Function:
    values = {name: float(value) for name, value in parameters.items()}
    given = {"temperature": float(temperature)} if temperature else {}
    section = {loss: values} if values else {}
    return term(loss=loss, standardize=standardize, **given, **section)


def multi_level(key: str) -> Function:
    """One part of MLKD, `ce`, `kd`, `cc` or `bc`, or their `sum`."""
    matched = re.fullmatch(r"(logit_std_)?mlkd(_one_view)?/T([\d_]+)/(\w+)", key)
    assert matched
    standardize, one_view, temperatures, part = matched.groups()
    first, *others = map(float, temperatures.split("_"))
    parts = {"kd": "instance_weight", "cc": "class_weight", "bc": "batch_weight"}
    weights = {} if part == "ce" else {name: float(part in (short, "sum")) for short, name in parts.items()}
    return term(
        two_views=not one_view,
        loss="mlkd",
        temperature=first,
        standardize=bool(standardize),
        mlkd={"temperatures": others, **weights},
        hard_weight=float(part in ("ce", "sum")),
        soft_weight=float(part != "ce"),
    )


def correlation(key: str) -> Function:
    which = mlkd.class_correlation if "class" in key else mlkd.batch_correlation
    return lambda x: which(*((x[name] / 4).softmax(-1) for name in ("logits_s", "logits_t")))[0, 0]


def kept(x: Inputs) -> Tensor:
    return torch.stack([share[0, 0] for share in mlkd.kept_shares(x["logits_t"])])


def temperature_per_sample(x: Inputs) -> Tensor:
    temperatures = x["temperature_per_sample"][None]  # [1,B]
    return kd.loss(x["logits_s"], x["logits_t"][:1], x["labels"], temperatures, 1.0, kd.Config()).mean()


# What computes a key, by its pattern; groups are passed on.
FUNCTIONS: dict[str, Callable[..., Function]] = {
    f"kd/T{NUMBER}": lambda _, t: of_loss("kd", t),
    f"logit_std_kd/T{NUMBER}": lambda _, t: of_loss("kd", t, standardize=True),
    f"(?:logit_std_)?dkd/alpha{NUMBER}_beta{NUMBER}_T{NUMBER}": lambda key, alpha, beta, t: of_loss(
        "dkd", t, key.startswith("logit_std"), alpha=alpha, beta=beta
    ),
    f"dist/beta{NUMBER}_gamma{NUMBER}_tau{NUMBER}": lambda _, beta, gamma, t: of_loss(
        "dist", t, beta=beta, gamma=gamma
    ),
    f"nkd/T{NUMBER}_gamma{NUMBER}": lambda _, t, gamma: of_loss("nkd", t, gamma=gamma),
    f"(w?ttm)/exponent{NUMBER}": lambda _, loss, exponent: of_loss(loss, exponent=exponent),
    f"(?:logit_std_)?rld/alpha{NUMBER}_beta{NUMBER}_T{NUMBER}_alphaT{NUMBER}": lambda key, alpha, beta, t, own: of_loss(
        "rld", t, key.startswith("logit_std"), alpha=alpha, beta=beta, alpha_temperature=own
    ),
    f"abkd/alpha{NUMBER}_beta{NUMBER}_T{NUMBER}": lambda _, alpha, beta, t: of_loss("abkd", t, alpha=alpha, beta=beta),
    rf"abkd_limit/alpha{NUMBER}_beta{NUMBER} \(.*\)": lambda _, alpha, beta: of_loss(
        "abkd", "1", alpha=alpha, beta=beta
    ),
    "(?:logit_std_)?mlkd(?:_one_view)?/T.*/(?:ce|kd|cc|bc|sum)": lambda key: multi_level(key),
    "mlkd/(?:class|batch)_correlation_T4": lambda key: correlation(key),
    r"mlkd/kept_share \[samples, classes\]": lambda _: kept,
    "kd_temperature_per_sample": lambda _: temperature_per_sample,
}


def found(key: str) -> list[Function]:
    matches = [(make, re.fullmatch(pattern, key)) for pattern, make in FUNCTIONS.items()]
    return [make(key, *match.groups()) for make, match in matches if match]


HERE = [key for key in grid.keys() if not key.startswith(OTHERS)]


def test_every_key_is_here_or_elsewhere() -> None:
    assert all(len(found(key)) == 1 for key in HERE), [key for key in HERE if len(found(key)) != 1]
    for beginning in OTHERS:
        assert any(key.startswith(beginning) for key in grid.keys()), beginning


@pytest.mark.parametrize("dtype", grid.DTYPES, ids=str)
@pytest.mark.parametrize("key", HERE)
def test_value_and_gradient(key: str, dtype: torch.dtype) -> None:
    (function,) = found(key)
    for case in grid.cases():
        grid.check(case, key, function, dtype)
