#!/usr/bin/env python
"""Write the tables of docs/methods.md: what weightings, logit losses and feature losses need and where they come from.

    python tests/tools/methods_table.py [--check]

Papers are read from the docstrings of the modules, needs from the code, by trying it where no attribute says it, and
reference values from tests/golden/.  What only people know, the published results, stands in PUBLISHED below.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import generated_page
import torch

import kd_methods
from kd_core.teachers.kept_features import Kept
from kd_methods import StudentOutput, TeacherOutputs, feature_losses, logit_losses

ROOT = Path(__file__).resolve().parents[2]
PAGE, GOLDEN = ROOT / "docs" / "methods.md", ROOT / "tests" / "golden"
NONE = "–"

# Top-1 accuracy in % on CIFAR-100, by budget and pair of networks, as docs/methods.md explains them.
PUBLISHED = {
    "weighting average": "O, five unlike teachers and ShuffleNetV2 x0.5, three seeds: 69.94 ± 0.33",
    "weighting fixed": "O, the same with weights by accuracy: 69.37 ± 0.34",
    "logit loss kd": "S: A 73.33, B 74.92, D 70.66, F 72.98, G 74.45",
    "logit loss dkd": "S: A 76.32, B 76.24, D 71.97, F 74.68, G 77.07",
    "logit loss dist": "S: A 76.31, B 75.51, D 71.75, F 73.89, G 77.35",
    "logit loss rld": "S: A 76.64, B 76.02, D 72.00, F 74.93, G 77.56",
    "logit loss ttm": "S: A 76.17, B 76.23, D 71.83, F 74.33, G 76.57",
    "logit loss wttm": "S: A 76.06, B 76.37, D 71.92, F 74.44, G 76.55",
    "logit loss mlkd": "L: A 77.08, B 76.63, D 72.19, F 75.18, G 78.44, with a second view",
    "logit loss crld": "S, two views and two student passes a step: A 77.60, B 76.45, D 72.10, F 75.27",
    "logit loss skd": "L, O: A 78.33, B 76.60, D 72.50, F 75.75",
    "feature loss at": "S: A 73.44, B 74.08, D 70.55, F 71.43, G 72.73",
    "feature loss rkd": "S: A 71.90, B 73.35, D 69.61, F 71.48, G 73.21",
    "feature loss crd": "S: A 75.51, B 75.48, D 71.16, F 73.94, G 75.65; five other seeds A 75.33 ± 0.20",
    "feature loss reviewkd": "S: A 75.63, B 76.12, D 71.89, G 77.78",
    "feature loss sdd": "S, with standardized logits: A 77.62, B 76.14, D 71.57, F 74.49, G 78.50",
    "feature loss simkd": "O, a larger student: A 76.73 to 78.08",
    "feature loss cat_kd": "S: ResNet-32x4 and ShuffleNetV1 78.26",
}
# Keys of the reference values that are not named after the loss.
KEYS = {
    "weighting average": ["weighting/uniform"],
    "feature loss ca_mkd": ["ca_mkd_feature/"],
    "feature loss mse": ["timm/feature_mse"],
    "feature loss reviewkd": ["reviewkd/", "hcl/"],
    "logit loss abkd": ["abkd/", "abkd_limit/"],
    "logit loss kd": ["kd/", "kd_temperature_per_sample", "logit_std_kd/"],
    "logit loss mlkd": ["mlkd/", "logit_std_mlkd/", "logit_std_mlkd_one_view/"],
}
OF_LOSSES_JSON = ("weighting ca_weighted", "weighting confidence", "weighting dynamic")
SAMPLES, CLASSES = 6, 5
STUDENT, TEACHER = ((8,), (8, 8, 8)), ((12,), (12, 24, 24))  # shapes of an embedding and of a map


# ------------------------------------------------------------------------------------------- what the code knows


def paper(module: str) -> str:
    """The paper in the first paragraph of a module's docstring, with a link where it is on arXiv."""
    text = " ".join((importlib.import_module(f"kd_methods.{module}").__doc__ or "").split("\n\n")[0].split("\n"))
    found = re.search(r"\.  (.*(?:arXiv:[\d.]+\d|[A-Za-z] \d{4}))", text)
    return re.sub(r"arXiv:([\d.]+\d)", r"[\1](https://arxiv.org/abs/\1)", found[1]) if found else NONE


def reference_values(name: str) -> str:
    """The keys of reference values by how they begin, and their number."""
    kind, _, own = name.rpartition(" ")
    if name in OF_LOSSES_JSON:
        keys = {key for case in json.loads((GOLDEN / "losses.json").read_text()).values() for key in case}
        return f"`{own}/` ({sum(key.startswith(f'{own}/') for key in keys)}, losses.json)"
    starts = KEYS.get(name, [f"weighting/{own}_"] if kind == "weighting" else [f"{own}/", f"logit_std_{own}/"])
    keys = {key for case in json.loads((GOLDEN / "grid.json").read_text()).values() for key in case}
    counts = {start: sum(key.startswith(start) and "reference_code" not in key for key in keys) for start in starts}
    return ", ".join(f"`{start}` ({count})" for start, count in counts.items() if count) or NONE


def random_logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student [B,C], teachers [2,B,C] and labels [B], in fp64."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, SAMPLES, CLASSES, generator=generator, dtype=torch.float64)
    return logits[0], logits[1:], torch.randint(CLASSES, (SAMPLES,), generator=generator)


def weighting(name: str) -> tuple[str, str]:
    """Of a weighting: what its weights depend on, and what has one set of them."""
    errors = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.2], [0.4]])
    method = kd_methods.build({"type": name}, teacher_errors=errors)
    state = {key: value.clone() for key, value in method.state_dict().items()}  # such as the number of the draw
    student, teachers, labels = random_logits()

    def weights(student: torch.Tensor, teachers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return method.teacher_weights(StudentOutput(student), TeacherOutputs(teachers), labels, 1.0)

    def changes(*inputs: torch.Tensor) -> bool:
        method.load_state_dict(state)
        return not torch.equal(weights(*inputs), plain)

    plain = weights(student, teachers, labels)
    logged = [method(StudentOutput(student), TeacherOutputs(teachers), labels)[1] for _ in range(2)]
    drawn = logged[0]["teacher/0/weight"] != logged[1]["teacher/0/weight"]
    others = {
        "teachers' logits": (student, teachers.flip(2), labels),
        "student's logits": (student.flip(1), teachers, labels),
        "labels": (student, teachers, (labels + 1) % CLASSES),
    }
    needs = [what for what, inputs in others.items() if changes(*inputs)]
    scope = "batch" if method.shared_weights else getattr(method.config, "scope", "")
    of = scope if needs else "step" if drawn else "run"
    needs += ["teachers' errors"] * (method.config.instead_of_errors is not None)
    return ", ".join(needs) or NONE, of


def logit_loss(name: str) -> tuple[str, str]:
    """Of a logit loss: what it needs, and whether a sample's value depends on the others of its batch."""
    config = logit_losses.config_class(name)
    loss = logit_losses.function(name, config())

    def values(student: torch.Tensor, teachers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        more = {"raw": (student, teachers)} if config.takes_raw else {}
        found: torch.Tensor = loss(student, teachers, labels, 2.0, 1.0, **more)
        return found

    student, teachers, labels = random_logits()
    whole, alone = values(student, teachers, labels), values(student[:1], teachers[:, :1], labels[:1])
    needs = ["logits"] + ["labels"] * (not torch.allclose(whole, values(student, teachers, (labels + 1) % CLASSES)))
    return ", ".join(needs), "sample" if torch.allclose(whole[:, :1], alone) else "batch"


def feature_loss(name: str) -> tuple[str, ...]:
    """Of a feature loss: needs, kept of a teacher, modes that can cache it, whose value it is, weight, layers."""
    cls, config = feature_losses.loss_class(name), feature_losses.config_class(name)()
    embeds = [layer == "embedding" for layer in config.student]
    own, other = ([vector if is_vector else map_ for is_vector in embeds] for vector, map_ in (STUDENT, TEACHER))
    loss = cls(config, own, other, num_classes=CLASSES, train_labels=torch.arange(40) % CLASSES)
    kept = [tuple(value.shape[1:]) for value in loss.keep(tuple(torch.rand(2, *shape) for shape in other))]
    needs = ["last map" if kind == "map" and config.student == [-1] else f"{kind.rstrip('s')}s" for kind in cls.kinds]
    needs[-1] += " of the student" * cls.of_teacher_logits
    needs += ["the student's last layer"] * cls.needs_student_classifier
    needs += ["the teacher's last layer"] * cls.needs_teacher_classifier + ["`rows`"] * hasattr(loss, "banks")
    modes = "`clean`, `fixed`" if Kept([(kept, {})], [0]).has_maps else "every mode"
    words = ", ".join(dict.fromkeys(map(in_words, kept))) or "nothing but the logits"
    layers = ", ".join(map(str, config.student))
    return ", ".join(needs), words, modes, "batch" if cls.of_batch else "image", f"{config.weight:g}", f"`[{layers}]`"


def in_words(shape: tuple[int, ...]) -> str:
    """What is kept of an image of a teacher with features TEACHER, for a student with STUDENT."""
    if len(shape) == 1:
        whole = {TEACHER[0][0]: "embedding", math.prod(TEACHER[1]): "map, as one vector"}
        return whole.get(shape[0], "a number per position")
    sides = {TEACHER[1][-1]: "map", STUDENT[1][-1]: "map at the size used", 1: "embedding"}
    return sides.get(shape[-1], f"map of {shape[-1]}x{shape[-1]}")


# --------------------------------------------------------------------------------------------------------- tables


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def tables() -> dict[str, str]:
    """Each table in Markdown by its name."""
    known = [name for name in kd_methods.names() if name != kd_methods.LABEL_ONLY]

    def row(kind: str, name: str, module: str, facts: tuple[str, ...], link: str) -> list[str]:
        key = f"{kind} {name}"
        ends = [reference_values(key), PUBLISHED.get(key, NONE)]
        return [f"[`{name}`]({link})", paper(module), *facts, *ends]

    ends = ["reference values", "published"]
    weightings = [row("weighting", name, name, weighting(name), f"#{name}") for name in known]
    logits = [
        row("logit loss", name, f"logit_losses.{name}", logit_loss(name), "#ttm" if name == "wttm" else f"#{name}")
        for name in kd_methods.losses()
    ]
    features = [
        row("feature loss", name, f"feature_losses.{name}", feature_loss(name), f"features.md#{name}")
        for name in feature_losses.names()
    ]
    of_features = ["needs of features", "kept of a teacher", "cached in", "loss of", "default weight", "default layers"]
    return {
        "weightings": table(["", "paper", "weights from", "weights of a", *ends], weightings),
        "logit losses": table(["", "paper", "needs", "value of a", *ends], logits),
        "feature losses": table(["", "paper", *of_features, *ends], features),
    }


def filled_in(text: str) -> str:
    """The page with its tables as they should be."""
    return generated_page.filled_in(text, "methods_table.py", tables())


if __name__ == "__main__":
    sys.exit(generated_page.main({PAGE: filled_in}, __doc__, sys.argv[1:]))
