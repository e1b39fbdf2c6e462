"""Every row of docs/porting.md: its settings, times its ratio, give the value that the other project's own code gives.

Values are those of tests/golden/grid.json, or of tests/golden/toolboxes.json: {TOOLBOX/LOSS: {case: value}}, the terms
that RepDistiller b84f547, CA-MKD c2f39a9, torchdistill 1.1.5, timm 1.0.31 and KD_Lib a94d236 compute on the same inputs
in fp64, to ten digits, for the cases that they can compute (MSELoss: where widths differ).
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grid
import grid_features
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.func import functional_call

import kd_methods
from kd_methods import StudentOutput, TeacherOutputs, feature_losses
from kd_methods.feature_losses import reviewkd

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "porting.md").read_text()
TOOLBOXES: dict[str, dict[str, float]] = json.loads((ROOT / "tests" / "golden" / "toolboxes.json").read_text())
DIGITS = 2e-9  # relative, of values of ten digits
Inputs = dict[str, Tensor]


def tables(heading: str) -> list[list[str]]:
    """The cells of all rows of tables with this heading line."""
    found, inside = [], False
    for line in PAGE.splitlines():
        if line == heading:
            inside = True
        elif inside and not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


SAME = tables("| theirs | here | theirs / ours | value |")
OTHERS = tables("| theirs | nearest here | what it is | value |")


def value_of(cell: str) -> str:
    return cell.strip("`")


def cases_of(key: str) -> list[str]:
    """The cases for which the other project has a value."""
    if key in TOOLBOXES:
        return [case for case in grid.cases() if case in TOOLBOXES[key]]
    return [
        case
        for case, found in grid.pairs(key)
        if found == key and isinstance(grid.entries(case)[key].get("value"), float)
    ]


def test_the_page_has_its_rows_and_every_value_of_the_toolboxes_has_one() -> None:
    used = {value_of(row[-1]) for row in SAME + OTHERS}
    assert len(SAME) > 40 and len(OTHERS) > 10
    assert all(cases_of(key) for key in used), [key for key in used if not cases_of(key)]
    assert used >= set(TOOLBOXES), set(TOOLBOXES) - used
    named = {key for key in grid.keys() if key.startswith(("timm/", "deit/"))}
    assert used >= named, named - used


# ----------------------------------------------------------------------------------------------------- rows with ratios


def settings_of(cell: str) -> dict[str, Any]:
    return yaml.safe_load("{" + cell.strip("`") + "}")


def ratio_of(cell: str, settings: dict[str, Any], x: Inputs) -> tuple[float, float]:
    """The ratio and, where it is approximate, its relative tolerance: `1`, `1/T²`, `1/C`, `(K-1)/K`, `1 to 3e-5`."""
    words, _, tolerance = cell.partition(" to ")
    count, (batch, classes), temperature = len(x["logits_t"]), x["logits_s"].shape, settings.get("temperature", 4)
    known = {
        "1": 1.0, "1/T²": temperature**-2, "1/B": 1 / batch, "1/C": 1 / classes,
        "1/K": 1 / count, "(K-1)/K": (count - 1) / count,
    }  # fmt: skip
    return known[words], float(tolerance or 0)


def logit_loss(settings: dict[str, Any], x: Inputs, all_teachers: bool) -> Tensor:
    """The loss of a method: its distillation term alone unless the settings have weights."""
    alone = {"type": "average", "hard_weight": 0.0, "soft_weight": 1.0}
    method = kd_methods.build({**alone, **settings})
    teachers = x["logits_t"] if all_teachers else x["logits_t"][:1]
    return method(StudentOutput(x["logits_s"]), TeacherOutputs(teachers), x["labels"], 1.0)[0]


def features_at(layers: list[Any], x: Inputs, whose: str, kind: str) -> tuple[list[Tensor], list[int]]:
    """The tensors at the layers that the case has, and the stages of those that are no embedding."""
    kind, count = ("tokens", 2) if "tokens_s0" in x else (kind, 3)
    stages = [count + layer for layer in layers if layer != "embedding" and count + layer >= 0]
    embedding = [x[f"emb_{whose[0]}"]] if "embedding" in layers else []
    return [*(x[f"{kind}_{whose}{stage}"] for stage in stages), *embedding], stages


def feature_loss(entry: dict[str, Any], case: str, key: str, x: Inputs) -> Tensor:
    """The loss of `entry` to teacher 0, with the projectors that the inputs hold."""
    name = entry["loss"]
    if name == "crd":
        loss, parameters, inputs = grid_features.crd_case(x)
        return functional_call(loss, parameters, inputs).mean()
    if name == "reviewkd":
        loss, student, teacher, parameters = grid_features.review(x)
        return grid_features.evaluate(loss, student, teacher, grid_features.batch_of(x), parameters).mean()
    if name == "ca_mkd":
        losses = grid_features.ca_mkd_losses(x, entry["form"])
        return losses[0].combine(grid_features.ca_mkd_values(losses, x), torch.ones(1, 1))
    config = feature_losses.config_class(name)(**entry)
    kind = "preact" if name == "ofd" else "feat"
    student, stages = features_at(config.student, x, "s", kind)
    teacher, _ = features_at(config.teacher, x, "t0_", kind)
    places = list(range(len(student)))
    shapes = [[tuple(values.shape[1:]) for values in features] for features in (student, teacher)]
    more = {"dim": 8} if name == "cc" else {}  # the width of the inputs
    config = config.model_copy(update={"student": places, "teacher": places, **more})
    loss = feature_losses.loss_class(name)(config, *shapes).to(student[0].dtype)
    hint = "fitnet/plain" if entry.get("regressor") == "plain" else "linear" if len(loss.state_dict()) else ""
    names = grid_features.parameters(name, hint, stages)
    own = dict(loss.named_parameters())
    if name == "ofd":
        norms = [(x[f"ofd_teacher_bn_w{stage}"], x[f"ofd_teacher_bn_b{stage}"]) for stage in stages]
        loss.use_norms(norms)  # type: ignore[operator]
    given = dict(zip(own, (x[one] for one in names), strict=True))
    return functional_call(loss, given, (tuple(student), loss.keep(tuple(teacher)), grid_features.batch_of(x))).mean()


def ours(settings: dict[str, Any], case: str, key: str, x: Inputs) -> Tensor:
    if "features" in settings:
        (entry,) = settings["features"]
        return feature_loss(entry, case, key, x)
    return logit_loss(settings, x, key.startswith("weighting/"))


def theirs_of(key: str, case: str) -> float:
    return TOOLBOXES[key][case] if key in TOOLBOXES else grid.entries(case)[key]["value"]


def compare(key: str, case: str, function: Callable[[Inputs], Tensor], tolerance: float = 0.0) -> None:
    """Values of the other project's code, and its gradients where they are known and the ratio is exact."""
    if key in TOOLBOXES or tolerance:
        actual, expected = function(grid.inputs(case)).item(), theirs_of(key, case)
        assert actual == pytest.approx(expected, rel=max(tolerance, DIGITS), abs=0), (key, case)
    else:
        grid.check(case, key, function, torch.float64)


@pytest.mark.parametrize(("theirs", "here", "ratio", "value"), SAME, ids=[f"{row[0]}-{row[1]}" for row in SAME])
def test_a_loss_that_is_offered(theirs: str, here: str, ratio: str, value: str) -> None:
    key, settings = value_of(value), settings_of(here)
    for case in cases_of(key):
        factor, tolerance = ratio_of(ratio, settings, grid.inputs(case))
        compare(key, case, lambda x, f=factor, c=case: f * ours(settings, c, key, x), tolerance)


# ------------------------------------------------------------------- losses that are not offered, made of our parts


def label_loss(logits: Tensor, labels: Tensor, x: Inputs) -> Tensor:
    method = kd_methods.build({"type": "baseline"})
    return method(StudentOutput(logits), TeacherOutputs(x["logits_t"]), labels)[0]


def with_head(x: Inputs, temperature: float) -> Tensor:
    """KD of the distillation head."""
    return logit_loss({"temperature": temperature}, {**x, "logits_s": x["logits_s_strong"]}, False)


def hard(x: Inputs) -> Tensor:
    """Cross-entropy of the distillation head with the teacher's class."""
    return label_loss(x["logits_s_strong"], x["logits_t"][0].argmax(-1), x)


def labels(x: Inputs) -> Tensor:
    return label_loss(x["logits_s"], x["labels"], x)


def maps(x: Inputs) -> tuple[Tensor, Tensor]:
    """The last maps, or patch tokens, of both."""
    student, teacher = grid_features.last_maps(x)
    return (student[:, 1:], teacher[:, 1:]) if student.ndim == 3 else (student, teacher)


def l1_rows(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    return F.normalize(flat @ flat.T, p=1)


def by_classes(x: Inputs, scale: float = 1.0) -> Tensor:
    """DIST with PyTorch's cosine similarity, which clamps norms."""
    p, q = ((scale * logits).softmax(1) for logits in (x["logits_s"], x["logits_t"][0]))
    over = [F.cosine_similarity(p - p.mean(d, keepdim=True), q - q.mean(d, keepdim=True), dim=d) for d in (1, 0)]
    return sum((1 - similarity.mean() for similarity in over), torch.zeros(()))


def rkd_sum(x: Inputs) -> Tensor:
    """Sums over pairs and triples are B^2 and B^3 times the means."""
    batch, parts = len(x["labels"]), []
    for part, weight in (("distance", 25 * batch**2), ("angle", 50 * batch**3)):
        entry = {"loss": "rkd", "distance": 0.0, "angle": 0.0, part: float(weight)}
        parts.append(feature_loss(entry, "", "", x))
    return sum(parts, torch.zeros(()))


def given_weights(x: Inputs) -> Tensor:
    loss = kd_methods.build({"type": "average", "temperature": 4.0}).logit_loss
    return (x["weights_given"].T * loss(x["logits_s"], x["logits_t"], x["labels"], 1.0)).sum(0).mean()


def given_feature_weights(x: Inputs) -> Tensor:
    """MMKD's: CA-MKD's regressors on maps of the smaller size."""
    losses, errors = grid_features.ca_mkd_losses(x, "sum1"), []
    for k, loss in enumerate(losses):
        both = [reviewkd.as_level(values) for values in grid_features.last_maps(x, k)]
        size = min(values.shape[-1] for values in both)
        student, teacher = (F.adaptive_avg_pool2d(values, size) for values in both)
        parameters = grid_features.ca_mkd_parameters(x, k)
        parameters = {name.partition(".")[2]: values for name, values in parameters.items()}
        errors.append((functional_call(loss.regressor, parameters, student) - teacher).square().mean((1, 2, 3)))
    return (x["weights_given"].T * torch.stack(errors)).sum(0).mean()


def whole_maps(x: Inputs) -> Tensor:
    """AT without the mean over channels."""
    pairs = [[F.normalize(x[f"feat_{who}{stage}"].square().flatten(1)) for who in ("s", "t0_")] for stage in range(3)]
    return sum(((student - teacher).square().mean() for student, teacher in pairs), torch.zeros(()))


def gram_distance(x: Inputs) -> Tensor:
    embeddings = [F.linear(x[f"emb_{who}"], x[f"cc_w{who}"], x[f"cc_b{who}"]) for who in "st"]
    student, teacher = (values @ values.T for values in embeddings)
    return (student - teacher).norm() / len(x["labels"]) ** 2


def squared_error_of_probabilities(x: Inputs) -> Tensor:
    student, teacher = ((logits / 4).softmax(1) for logits in (x["logits_s"], x["logits_t"][0]))
    return 4**2 * (student - teacher).square().mean()


FROM_PARTS: dict[str, Callable[[Inputs], Tensor]] = {
    "timm/token_hard_distill_loss": hard,
    "timm/token_soft_T3_task0.5_total": lambda x: 0.5 * labels(x) + 0.5 * with_head(x, 3.0),
    "deit/hard_alpha0.5": lambda x: 0.5 * labels(x) + 0.5 * hard(x),
    "deit/soft_alpha0.1_tau3": lambda x: 0.9 * labels(x) + 0.1 * with_head(x, 3.0) / x["logits_s"].shape[1],
    "weighting/given_weights_T4 (MMKD's logit term)": given_weights,
    "feature_given_weights (MMKD's feature term)": given_feature_weights,
    "torchdistill/SPKDLoss": lambda x: sum(
        ((l1_rows(a) - l1_rows(b)).square().sum() / len(a) ** 2 for a, b in [maps(x)]), torch.zeros(())
    ),
    "torchdistill/CCKDLoss(bilinear)": gram_distance,
    "torchdistill/RKDLoss(sum)": rkd_sum,
    "torchdistill/DISTLoss(tau=1), logits times 6": lambda x: by_classes(x, 6.0),
    "KD_Lib/VanillaKD": squared_error_of_probabilities,
    "KD_Lib/attention": whole_maps,
}


def test_the_page_lists_every_loss_that_is_made_of_parts() -> None:
    assert {value_of(row[-1]) for row in OTHERS} == set(FROM_PARTS)


@pytest.mark.parametrize(("theirs", "nearest", "what", "value"), OTHERS, ids=[row[-1] for row in OTHERS])
def test_a_loss_that_is_not_offered(theirs: str, nearest: str, what: str, value: str) -> None:
    """It is what the page says; and the nearest setting, if one is named, is no multiple of it."""
    key, ratios = value_of(value), []
    for case in cases_of(key):
        compare(key, case, FROM_PARTS[key])
        if nearest.startswith("`"):
            x = grid.inputs(case)
            settings = settings_of(nearest)
            x = {**x, **{name: 6 * x[name] for name in ("logits_s", "logits_t") if "times 6" in key}}
            ratios.append(theirs_of(key, case) / ours(settings, case, key, x).item())
    if len(ratios) > 1:
        assert max(ratios) > 1.01 * min(ratios), ratios


def test_the_tables_name_losses_and_settings_of_this_project_alone() -> None:
    for row in SAME + OTHERS:
        if row[1].startswith("`"):
            settings = settings_of(row[1])
            kd_methods.config_class(settings.get("type", "average")).model_validate({"type": "average", **settings})
    assert set(re.findall(r"^## `?([^`\n]+)`?$", PAGE, re.MULTILINE)) >= {
        "mdistiller", "RepDistiller", "torchdistill", "CA-MKD", "timm", "KD_Lib",
    }  # fmt: skip


def test_why_the_weights_of_the_aekd_repositories_do_not_depend_on_the_teachers() -> None:
    """The products of gradients of 64 images of 100 classes are below the solver's tolerance of 1e-6."""
    with np.load(ROOT / "tests" / "golden" / "losses.npz", allow_pickle=False) as arrays:
        found = {name: torch.from_numpy(arrays[f"b64_c100_k3/{name}"]) for name in ("logits_s", "logits_t", "labels")}
    student, teachers = found["logits_s"].double(), found["logits_t"].double()
    gradients = 4 * ((student / 4).softmax(-1) - (teachers / 4).softmax(-1)).mean(1) / len(student)
    assert 1e-7 < (gradients @ gradients.T).max() < 1e-6
    method = kd_methods.build({"type": "aekd", "temperature": 4.0})
    weights = method.teacher_weights(StudentOutput(student), TeacherOutputs(teachers), found["labels"], 1.0)[:, 0]
    torch.testing.assert_close(weights, torch.tensor([0.3950, 0.1651, 0.4399]).double(), rtol=0, atol=1e-4)
