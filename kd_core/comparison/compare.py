"""Runs side by side: groups of seeds, sets of groups that may be compared, and how they differ.

What the numbers mean, with sources: docs/comparing.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kd_core.comparison.runs import Found, Run, number
from kd_core.comparison.significance import difference, holm, is_within, pooled, spread, verdict
from kd_core.errors import UserError, did_you_mean
from kd_core.run.folder import lookup

ALONE = "alone"  # the group without teachers
MAX_PAIRS = 2  # named in the title of a set
DEFAULT_METRICS = ("test/accuracy", "val/accuracy")
HIGHER = r"(\w*accuracy|top5|auroc|agreement|oracle|gain|correct|images_per_second)"
LOWER = r"(\w*loss\w*|nll|brier|ece\w*|kl|\w*_time|\w*parameters|multiply_adds|\w*bytes|latency_ms)"
# of the metrics that are better when higher, those that are shares of images
PERCENT = r"(\w*accuracy|top5|agreement|oracle|gain|gain_error)"


def _last_word(metric: str) -> str:
    """The last part of a metric's name that is no number, which a class or a batch size has."""
    words = [word for word in re.split(r"[/.]", metric) if not word.isdigit()]
    return words[-1] if words else ""


def higher_is_better(metric: str) -> bool | None:
    """Whether more of a metric is better; None if that is not known.  Its name's last part says so."""
    last = _last_word(metric)
    return True if re.fullmatch(HIGHER, last) else False if re.fullmatch(LOWER, last) else None


def is_percent(metric: str) -> bool:
    """Whether a metric is a share of images, to be shown in percent."""
    return bool(re.fullmatch(PERCENT, _last_word(metric)))


def limits(metric: str) -> tuple[float, float]:
    """The lowest and the highest value that a metric can have; infinite without a limit."""
    last = _last_word(metric)
    if re.fullmatch(r"gain", last):
        return -1.0, 1.0
    if re.fullmatch(r"loss_(total|distill|features|kl|soft)", last):  # a distillation loss can be negative, as VID is
        return -math.inf, math.inf
    if is_percent(metric) or re.fullmatch(r"auroc|ece\w*", last):
        return 0.0, 1.0
    return (0.0 if re.fullmatch(LOWER, last) else -math.inf), math.inf


# -------------------------------------------------------------------------------------------------------- grouping


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {'section.key': value}; an empty list or section is the same as none."""
    if not isinstance(values, (dict, list)):
        return {prefix[:-1]: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {key: leaf for name, value in items for key, leaf in flat(value, f"{prefix}{name}.").items()}


@dataclass
class Group:
    """Runs that differ in nothing but the seed: {seed: run}."""

    runs: dict[int, Run]
    label: str = ""
    name: str = ""  # the label without the settings that tell groups of one name apart

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))

    @property
    def is_alone(self) -> bool:
        return not self.first.config.teachers

    @property
    def method(self) -> str:
        return ALONE if self.is_alone else self.first.config.kd.type

    @property
    def settings(self) -> dict[str, Any]:
        """All that shaped it but the seed."""
        own = flat(self.first.identity)
        own.pop("training.seed", None)
        return own

    @property
    def surroundings(self) -> dict[str, Any]:
        """Settings that must be equal in groups that are compared, without those of method and teachers."""
        own = self.settings
        return {key: own[key] for key in own if key.split(".")[0] not in ("kd", "teachers", "fixed_views")}

    @property
    def panel(self) -> dict[str, Any]:
        """The teachers, and what depends on them."""
        own = self.settings
        return {key: own[key] for key in own if key.split(".")[0] in ("teachers", "fixed_views")}

    def values(self, metric: str) -> dict[int, float]:
        """{seed: value} of the runs that have the metric."""
        found = {seed: run.figure(metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def group(runs: Iterable[Run]) -> tuple[list[Group], list[str]]:
    """Groups in the order in which they first occur, and notes: of equal runs with one seed only the newest counts."""
    groups: dict[str, Group] = {}
    notes = []
    for run in runs:
        own = Group({run.seed: run})
        there = groups.setdefault(settings_key(own.settings), own)
        other = there.runs.setdefault(run.seed, run)
        if other is not run:
            newest, older = sorted((run, other), key=lambda one: one.created, reverse=True)
            there.runs[run.seed] = newest
            notes.append(f"seed {run.seed} twice with the same settings: {newest.name} counts, {older.name} is older")
    for one in groups.values():
        one.runs = dict(sorted(one.runs.items()))
    return list(groups.values()), notes


def that_count(runs: Iterable[Run]) -> list[Run]:
    """The runs without those of which another with the same settings and seed is newer."""
    return [run for one in group(runs)[0] for run in one.runs.values()]


def settings_key(settings: dict[str, Any]) -> str:
    """Settings as text, by which equal ones are found."""
    return json.dumps(settings, sort_keys=True)


def comparable_sets(groups: list[Group], vary: Sequence[str] = ()) -> list[list[Group]]:
    """Sets of groups that differ only in their methods, and in the settings that may `vary`, the largest sets first.

    A group without teachers joins every set of its kind.
    """

    def surroundings(one: Group) -> str:
        return settings_key({key: value for key, value in one.surroundings.items() if not _is_of(key, vary)})

    def panel(one: Group) -> str:
        own = {key: value for key, value in one.panel.items() if not _is_of(key, vary)}
        return "" if "teachers" in vary else settings_key(own)

    sets: dict[tuple[str, str], list[Group]] = {}
    for one in groups:
        if not one.is_alone:
            sets.setdefault((surroundings(one), panel(one)), []).append(one)
    for one in groups:
        if one.is_alone:
            kind = surroundings(one)
            joined = [members for (around, _), members in sets.items() if around == kind]
            for members in joined:
                members.insert(0, one)
            if not joined:
                sets[kind, "alone"] = [one]
    return sorted(sets.values(), key=len, reverse=True)


def _is_of(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of `names` or below one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def differing(many: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """{key: its value in each} of the keys in which settings differ; None where one has no such key."""
    keys = dict.fromkeys(key for one in many for key in one)
    rows = {key: [one.get(key) for one in many] for key in keys}
    return {key: values for key, values in rows.items() if len({json.dumps(value) for value in values}) > 1}


def _shared(members: list[Group]) -> dict[str, Any]:
    """The settings that the groups of a set share; the teachers are those of the groups that have any."""
    one = next((one for one in members if not one.is_alone), members[0])
    return {**one.surroundings, **one.panel}


def _titles(sets: list[list[Group]]) -> list[str]:
    """A name for each set: its networks, or if they are many their number, and settings that tell equal names apart."""
    return _distinct_labels([_title(members) for members in sets], [_shared(members) for members in sets])


def _title(members: list[Group]) -> str:
    pairs = dict.fromkeys(one.first.pair for one in members if not one.is_alone) or [members[0].first.pair]
    if len(pairs) <= MAX_PAIRS:
        return "; ".join(pairs)
    students = {one.first.config.model.name for one in members}
    return f"{len(pairs)} sets of teachers -> {students.pop()}" if len(students) == 1 else f"{len(pairs)} pairs"


def label(groups: list[Group]) -> None:
    """Name the groups of one set by method, by teachers if those differ, and by settings that tell equal ones apart."""
    panels = {tuple(one.first.teachers) for one in groups if not one.is_alone}
    names = [one.method for one in groups]
    if len(panels) > 1:
        names = [one.method if one.is_alone else f"{one.method}: {' + '.join(one.first.teachers)}" for one in groups]
    labels = _distinct_labels(names, [one.settings for one in groups])
    for one, name, text in zip(groups, names, labels, strict=True):
        one.name, one.label = name, text


def _in_order(groups: list[Group], baseline: Group | None) -> list[Group]:
    """The baseline, then names in the order in which they occur, and groups of one name by their settings' values."""
    names = list(dict.fromkeys(one.name for one in groups))
    return sorted(groups, key=lambda one: (one is not baseline, names.index(one.name), _by_value(one.label)))


def _by_value(text: str) -> list[tuple[float, str]]:
    """A label as a key to sort by, numbers in it by their size."""
    parts = re.findall(r"(\d+(?:\.\d+)?(?:e-?\d+)?)|(\D+)", text)
    return [(float(digits or "inf"), words) for digits, words in parts]


def _distinct_labels(names: list[str], settings: list[dict[str, Any]]) -> list[str]:
    """The names; equal ones are followed by the method's own settings that differ, and others as far as needed.

    The others are those of losses, such as `kd.rld.beta`, which the name of a loss mostly makes clear, and those that
    are not the method's.  What a loss that is not there would have is left out.
    """
    labels = []
    for name, own in zip(names, settings, strict=True):
        same = [other for its, other in zip(names, settings, strict=True) if its == name]
        apart = differing(same)
        keys = [key for key in apart if re.fullmatch(r"kd\.\w+", key)]
        for key in sorted(apart, key=lambda key: (not key.startswith("kd."), not key.endswith(".loss"))):
            if key not in keys and _distinct(same, [*keys, key]) > _distinct(same, keys):
                keys.append(key)
        nested = [key for key in keys if key.count(".") > 1 and key.startswith("kd.")]
        shown = [key for key in keys if key not in nested or own.get(key) is not None]
        details: list[str] = []
        for key in shown:
            text = f"{_short_key(key, own)}={short(own.get(key))}"
            if text not in details or not key.startswith("teachers."):  # what all teachers have is said once
                details.append(text)
        labels.append(f"{name} ({', '.join(details)})" if details else name)
    return labels


def _short_key(key: str, own: dict[str, Any]) -> str:
    """A setting's key in a label of a group with the settings `own`.

    `kd.features.1.loss` is `feature`, since its value names the loss; `teachers.0.view` is `view` if all teachers have
    the same.
    """
    if found := re.fullmatch(r"teachers\.\d+\.(.+)", key):
        same = re.compile(rf"teachers\.\d+\.{re.escape(found[1])}")
        return found[1] if len({json.dumps(own[name]) for name in own if same.fullmatch(name)}) == 1 else key
    return re.sub(r"^kd\.(features\.\d+\.loss$)?", lambda found: "feature" if found[1] else "", key)


def _distinct(settings: list[dict[str, Any]], keys: list[str]) -> int:
    return len({json.dumps([own.get(key) for key in keys]) for own in settings})


def short(value: Any) -> str:
    """A setting's value as text; of digests the first characters."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:8] if re.fullmatch("[0-9a-f]{16,}", text) else text


# ------------------------------------------------------------------------------------------------------- comparing


def choose_metric(groups: list[Group], metric: str | None) -> str:
    """The metric to compare.  UserError if no run has it, or if it is unknown whether higher is better."""
    runs = [run for one in groups for run in one.runs.values()]
    if metric is None:
        complete = [name for name in DEFAULT_METRICS if all(run.figure(name) is not None for run in runs)]
        some = [name for name in reversed(DEFAULT_METRICS) if any(run.figure(name) is not None for run in runs)]
        metric = next(iter([*complete, *some]), DEFAULT_METRICS[-1])
    require_figure(runs, metric, "--metric")
    if higher_is_better(metric) is None:
        raise UserError(f"--metric: {metric}: it is unknown whether higher is better; --also shows it")
    return metric


def require_figure(runs: list[Run], name: str, key: str) -> None:
    """UserError, which begins with `key`, if no run has a metric of this name."""
    if not any(run.figure(name) is not None for run in runs):
        known = sorted({figure for run in runs for figure in run.figures()})
        shown = ", ".join(known[:40]) + (", ..." if len(known) > 40 else "")
        raise UserError(f"{key}: {name}: no run has such a metric; there are {shown or 'none at all'}")


def compare(
    found: Found,
    *,
    metric: str | None = None,
    also: Sequence[str] = (),
    baseline: str | None = None,
    confidence: float = 0.95,
    force: bool = False,
    vary: Sequence[str] = (),
    contrasts: Sequence[str] = (),
    margin: float | None = None,
    pool: bool = False,
) -> dict[str, Any]:
    """The comparison of the runs, ready for JSON; docs/comparing.md explains the keys.

    Args:
        vary: settings in which groups of a set may differ besides the method, such as `teachers`.
        contrasts: `A:B`, names of groups: these differences are tested too, in each set that has both, and corrected
            among themselves.
        margin: differences whose interval lies within it are marked; in points for shares of images.
        pool: test differences with the variance of all groups of a set instead of the two that are compared.

    UserError if there is nothing to compare, no such metric, setting, baseline or group, or an invalid level or margin.
    """
    if not 0 < confidence < 1:
        raise UserError(f"--confidence: is {confidence:g}, must lie between 0 and 1, such as 0.95")
    if margin is not None and not 0 < margin < math.inf:
        raise UserError(f"--margin: is {margin:g}, must be above 0, such as 0.5")
    if not found.runs:
        reasons = [f"  {name}: {why}" for name, why in found.left_out]
        raise UserError("\n".join(["no finished run to compare", *reasons]))
    groups, notes = group(found.runs)
    notes = [*found.notes, *notes]
    chosen = choose_metric(groups, metric)
    for name in also:
        require_figure(found.runs, name, "--also")
    left_out = [{"run": name, "reason": reason} for name, reason in found.left_out]
    for one in groups:
        without = [run for run in one.runs.values() if run.figure(chosen) is None]
        left_out += [{"run": run.name, "reason": f"has no finite {chosen}"} for run in without]
    groups = [one for one in groups if one.values(chosen)]
    _check_vary(groups, vary)
    apart = comparable_sets(groups, vary)
    sets = [groups] if force else apart
    against = [_find_baseline(members, baseline) for members in sets]
    if baseline is not None and not any(against):
        known = sorted({name for one in groups for name in (one.label, one.method, one.first.config.experiment)})
        raise UserError(f"--baseline: no group is called {baseline!r}; there are {', '.join(known)}")
    differences = differing([_shared(members) for members in apart])
    if fingerprints := [short(one) for one in dict.fromkeys(differences.get("images", ())) if one]:
        notes.append(
            f"the data's fingerprints differ ({', '.join(fingerprints)}); if images and labels are the same, as where "
            f"an earlier version counted class names in: --same-data {fingerprints[0]}={fingerprints[-1]}"
        )
    scaled = margin / 100 if margin is not None and is_percent(chosen) else margin
    return {
        "metric": chosen,
        "higher_is_better": higher_is_better(chosen),
        "also": list(also),
        "margin": margin,
        "contrasts": _contrasts(sets, contrasts, chosen, confidence, scaled),
        "confidence_level": confidence,
        "forced": force and len(apart) > 1,
        "left_out": left_out,
        "notes": notes,
        "differences": [{"key": key, "values": values} for key, values in differences.items()],
        "apart": _titles(apart),
        "sets": [
            {"title": title, **_compare_set(members, base, chosen, also, confidence, scaled, pool, baseline is None)}
            for title, members, base in zip(_titles(sets), sets, against, strict=True)
        ],
    }


def _check_vary(groups: list[Group], vary: Sequence[str]) -> None:
    """UserError for a name of `--vary` that is no setting of a run besides the method's."""
    known = {key for one in groups for key in [*one.surroundings, *one.panel]} | {"teachers"}
    for name in vary:
        if not any(_is_of(key, [name]) for key in known):
            hint = did_you_mean(name, known) or "; expected such as teachers, training.max_epochs or augment"
            raise UserError(f"--vary: {name}: no run has such a setting{hint}")


def _contrasts(
    sets: list[list[Group]], wanted: Sequence[str], metric: str, confidence: float, margin: float | None
) -> list[dict[str, Any]]:
    """The differences `A:B` of two groups of a set, in each set that has both, corrected for their number."""
    found: list[dict[str, Any]] = []
    titles = _titles(sets)
    for text in wanted:
        pairs, unclear = _pairs(sets, text)
        for index, (first, second) in pairs.items():
            label(sets[index])  # a group without teachers is in several sets
            title = titles[index] if len(pairs) > 1 else None
            test = difference(first.values(metric), second.values(metric), confidence, limits(metric))
            names = {"label": first.label, "against": second.label, "title": title}
            found.append({**names, **test, "warnings": [*_about(test, first.label, second.label), *unclear]})
    _judge(found, metric, confidence, margin)
    return found


def _pairs(sets: list[list[Group]], text: str) -> tuple[dict[int, tuple[Group, Group]], list[str]]:
    """({index of a set: its groups that `A:B` names}, why other sets are not tested); names may hold colons.

    UserError unless a set has both.
    """
    parts = text.split(":")
    cuts = [(":".join(parts[:cut]).strip(), ":".join(parts[cut:]).strip()) for cut in range(1, len(parts))]
    found: dict[int, tuple[Group, Group]] = {}
    unclear: list[UserError] = []
    for index, members in enumerate(sets):
        try:
            pair = _pair(members, cuts)
        except UserError as error:  # a name that several groups of this set have
            unclear.append(error)
            continue
        if pair and pair not in found.values():
            found[index] = pair
    if found:
        return found, list(map(str, unclear))
    if unclear:
        raise unclear[0]
    known = list(dict.fromkeys(one.label for members in sets for one in members))
    for names in (cut for cut in cuts if cut[0] != cut[1]):
        if all(any(_named(members, name, "--contrast") for members in sets) for name in names):
            raise UserError(
                f"--contrast: {text!r}: the two are in no common set; --vary KEYS names settings that may differ in one"
            )
    raise UserError(f"--contrast: is {text!r}, expected two groups, A:B; there are {', '.join(map(repr, known))}")


def _pair(members: list[Group], cuts: list[tuple[str, str]]) -> tuple[Group, Group] | None:
    """The first two groups of a set that one of the pairs of names is, by labels before other names."""
    label(members)
    own = {member.label: member for member in members}
    for find in (own.get, lambda name: _named(members, name, "--contrast")):
        for first, second in ((find(one), find(other)) for one, other in cuts):
            if first and second and first is not second:
                return first, second
    return None


def _judge(tests: list[dict[str, Any]], metric: str, confidence: float, margin: float | None) -> None:
    """Add p-values corrected among these tests, verdicts, and whether a difference lies within the margin."""
    corrected = iter(holm([test["p"] for test in tests if test["p"] is not None]))
    for test in tests:
        test["p_holm"] = None if test["p"] is None else next(corrected)
        test["verdict"] = verdict(test, bool(higher_is_better(metric)), confidence)
        test["within_margin"] = is_within(test["interval"], margin)


def _find_baseline(members: list[Group], name: str | None) -> Group | None:
    """The group that others of the set are compared with.  UserError if several have the name.

    Without a name the student alone, and of several the plainest: a section that is switched on adds settings.
    """
    label(members)
    if name is None:
        alone = [one for one in members if one.is_alone]
        return min(alone, key=lambda one: (len(one.settings), _by_value(one.label)), default=members[0])
    return _named(members, name, "--baseline")


def _named(members: list[Group], name: str, option: str) -> Group | None:
    """The group of a set with this label, method or experiment.  UserError if several have the name."""
    label(members)
    for names in (lambda one: (one.label, _without_teachers(one.label)), _methods, _experiments):
        fitting = [one for one in members if name in names(one)]
        if len(fitting) > 1:
            raise UserError(f"{option}: {name!r} may be each of {', '.join(repr(one.label) for one in fitting)}")
        if fitting:
            return fitting[0]
    return None


def _without_teachers(text: str) -> str:
    """A label without the teachers that `--vary teachers` adds: METHOD (key=value)."""
    return re.sub(r"^(\w+): .* (\([^()]*\))$", r"\1 \2", text)


def _methods(one: Group) -> set[str]:
    return {one.method, one.first.config.kd.type}


def _experiments(one: Group) -> set[str]:
    return {run.config.experiment for run in one.runs.values()}


def _compare_set(
    members: list[Group],
    baseline: Group | None,
    metric: str,
    also: Sequence[str],
    confidence: float,
    margin: float | None,
    pool: bool,
    by_default: bool,
) -> dict[str, Any]:
    label(members)  # a group without teachers is in several sets
    common = pooled({one.label: one.values(metric) for one in members}) if pool else None

    def against(one: Group, other: Group) -> dict[str, Any]:
        if common:
            return common.difference(one.label, other.label, confidence, limits(metric))
        return difference(one.values(metric), other.values(metric), confidence, limits(metric))

    rows = []
    for one in _in_order(members, baseline):
        values = one.values(metric)
        others = {name: list(one.values(name).values()) for name in also}
        rows.append(
            {
                "label": one.label,
                "method": one.first.config.kd.type,
                "experiment": one.first.config.experiment,
                "alone": one.is_alone,
                "kd": one.first.config.kd.model_dump(mode="json"),
                **spread(list(values.values()), confidence, limits(metric)),
                "seeds": [{"seed": s, "value": value, "run": one.runs[s].name} for s, value in values.items()],
                "also": {
                    name: spread(found, confidence, limits(name)) if found else None for name, found in others.items()
                },
                "cost": _cost(one),
                "against_baseline": against(one, baseline) if baseline and one is not baseline else None,
            }
        )
    _judge([row["against_baseline"] for row in rows if row["against_baseline"]], metric, confidence, margin)
    warnings = _warnings(rows, baseline.label if baseline else None, common is not None)
    if by_default and baseline and (count := sum(one.is_alone for one in members)) > 1:
        words = f"{count} students alone: differences are against {baseline.label}; --baseline names another"
        warnings.insert(0, words)
    if pool and common is None:
        warnings.append("--pooled: needs two groups with two common seeds whose values differ; each is tested alone")
    return {
        "budget": " or ".join(dict.fromkeys(one.first.config.budget for one in members)),
        "baseline_label": baseline.label if baseline else None,
        "pooled": common and common.summary(),
        "warnings": warnings,
        "groups": rows,
    }


def _cost(one: Group) -> dict[str, float | None]:
    """Means over the runs of what training and the student cost."""

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    runs = one.runs.values()
    return {
        "training_seconds": mean(run.training_seconds for run in runs),
        "parameters": mean(number(run.summary.get("parameters")) for run in runs),
        "multiply_adds": mean(number(lookup(run.summary, "cost.multiply_adds")) for run in runs),
    }


def _warnings(rows: list[dict[str, Any]], baseline: str | None, is_pooled: bool) -> list[str]:
    found = []
    seeds = {row["label"]: [one["seed"] for one in row["seeds"]] for row in rows}
    if len({tuple(own) for own in seeds.values()}) > 1:
        listed = _by_seeds(seeds)
        of = "a least-squares fit to all runs" if is_pooled else "the seeds that both groups have"
        found.append(f"the seeds differ ({listed}): differences are of {of}")
    for row in rows:
        if test := row["against_baseline"]:
            found += _about(test, row["label"], str(baseline))
    few = [name for name, own in seeds.items() if len(own) < 3]
    if few:
        names = "all groups" if len(few) == len(seeds) > 2 else ", ".join(few)
        found.append(f"fewer than three seeds: {names}; expect wide intervals, or train more seeds")
    return found


def _about(test: dict[str, Any], own: str, other: str) -> list[str]:
    """Warnings about the test of two groups: of which kind it is, and why there is none."""
    found = []
    if test["kind"] == "unpaired":
        found.append(f"{own} and {other} have no seed in common: compared by Welch's test, unpaired")
    if test["why"] in ("equal differences", "equal values"):
        found.append(f"{own}: {test['why']} in all seeds, so no test is possible")
    if test["kind"] == "pooled" and test["why"]:
        found.append(f"{own} and {other}: {test['why']}: no test is possible, and the difference is that of the means")
    return found


def _by_seeds(seeds: dict[str, list[int]]) -> str:
    """The groups by their seeds, in as few words as possible: the largest of several lots are "the others"."""
    lots: dict[str, list[str]] = {}
    for name, own in seeds.items():
        lots.setdefault(", ".join(map(str, own)), []).append(name)
    most = max(lots, key=lambda numbers: len(lots[numbers]))
    if len(lots[most]) > 2:
        del lots[most]
        lots[most] = ["the others"]  # listed last
    return "; ".join(f"{', '.join(names)}: {numbers}" for numbers, names in lots.items())
