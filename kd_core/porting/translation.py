"""What an experiment of another project becomes: settings of train_kd.py, and how its losses compare with theirs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

import kd_methods
from kd_core.config.yaml12 import Yaml12Dumper
from kd_core.errors import printable
from kd_core.porting.experiment_file import Keys

TRAINED = "the teacher is trained first, by configs/teachers/papers.yaml"
TEACHER = f"{TRAINED}; their checkpoint takes its place with --teachers.0.weights=FILE --teachers.0.train=null"
LAST_BATCH = "an epoch here leaves out the images of the last, incomplete batch"


@dataclass
class Term:
    """One loss: its name and weight there, their loss over ours on the same tensors, and the setting here."""

    theirs: str
    ratio: str
    ours: str


@dataclass
class Translation:
    """The losses of an experiment, collected one by one, and the rest of its settings."""

    keys: Keys
    title: str = ""
    hard_weight: float = 0.0
    soft_weight: float = 0.0
    logits: dict[str, Any] = field(default_factory=dict)  # `loss`, `temperature` and the like
    features: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)  # the sections but for `kd`
    terms: list[Term] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add_labels(self, theirs: str, weight: float) -> None:
        self.hard_weight = tidy(self.hard_weight + weight)
        self.terms.append(Term(f"{weight:g} x {theirs}", "1", f"{weight:g} of kd.hard_weight"))

    def add_logits(
        self, key: str, theirs: str, weight: float, settings: dict[str, Any], ratio: float = 1.0, words: str = "1"
    ) -> None:
        """A logit loss; a second one, which `key` has asked for, is a problem unless its settings are the same."""
        if self.logits and self.logits != settings:
            self.keys.problem(key, "a second logit loss, or the same with other settings; kd.loss is one")
        self.logits = settings
        self.soft_weight = tidy(self.soft_weight + weight * ratio)
        said = words if ratio == 1 else f"{words} = {ratio:g}"
        self.terms.append(Term(f"{weight:g} x {theirs}", said, f"{tidy(weight * ratio):g} of kd.soft_weight"))

    def add_feature(self, theirs: str, weight: float, entry: dict[str, Any]) -> None:
        """A feature loss with ratio 1."""
        place = f"kd.features[{len(self.features)}].weight {tidy(weight):g}"
        self.terms.append(Term(f"{weight:g} x {theirs}", "1", place))
        self.features.append({"loss": entry["loss"], "weight": tidy(weight), **entry})

    def finish(self, key: str) -> None:
        """Say what follows from all weights together; a problem of `key` if they leave no loss."""
        if self.soft_weight or self.features:
            return
        self.more.pop("teachers", None)
        if not self.hard_weight and self.terms:
            self.keys.problem(key, "all weights are 0, which leaves no loss")
        elif self.hard_weight not in (0, 1):
            self.notes.append(
                f"their cross-entropy counts {self.hard_weight:g}; alone it counts 1 here, so its gradient is "
                f"{tidy(1 / self.hard_weight):g} times theirs"
            )

    def kd(self) -> dict[str, Any]:
        """The section `kd`."""
        if not (self.soft_weight or self.features):
            return {"type": kd_methods.LABEL_ONLY}
        weights = {"type": "average", "hard_weight": self.hard_weight, "soft_weight": self.soft_weight}
        return {**weights, **self.logits, **({"features": self.features} if self.features else {})}

    def values(self) -> dict[str, Any]:
        """The whole configuration."""
        return {**self.more, "kd": self.kd()}

    def text(self, name: str) -> str:
        """The configuration as YAML, with the ratios and what differs as comments."""
        lines = [f"Translated from {name}: {self.title}.", ""]
        lines += ["Losses: theirs, the ratio theirs / ours on the same tensors, ours (docs/porting.md):"]
        widths = [max(len(getattr(term, part)) for term in self.terms) for part in ("theirs", "ratio")]
        lines += [f"  {t.theirs:{widths[0]}}   {t.ratio:{widths[1]}}   {t.ours}" for t in self.terms]
        for title, items in (("Differences:", self.notes), ("Left out:", [", ".join(self.left_out)])):
            if any(items):
                lines += ["", title, *(f"  - {item}" for item in items)]
        comments = "".join(f"# {' '.join(printable(line).splitlines())}".rstrip() + "\n" for line in lines)
        return comments + yaml.dump(self.values(), Dumper=WithoutAliases, sort_keys=False, default_flow_style=None)


class WithoutAliases(Yaml12Dumper):
    """Writes a list that stands in two places twice, as files of settings have no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def tidy(number: float) -> float:
    """The number without the last digits of binary arithmetic: 0.1, not 0.09999999999999998."""
    return float(f"{number:.12g}")
