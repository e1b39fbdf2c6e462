"""What is wrong with a setting, in one line: where it comes from, its key and value, and what is allowed."""

from __future__ import annotations

import re
from typing import Any

import kd_methods
from kd_core.config.keys import all_keys, known_keys
from kd_core.config.read import COMMAND_LINE
from kd_core.errors import USUAL_NAMES, did_you_mean, near_names, suggestion

CUTOFF = 0.55  # how similar a name must be, as in difflib


def _elsewhere(key: str, origin: str, *, similar: bool = False) -> str:
    """The full names of settings that end in `key`, or in a `similar` word, as a suggestion; empty without such."""
    word, by_end = key.replace("-", "_"), dict[str, list[str]]()
    for name in sorted(dict.fromkeys(all_keys()), key=lambda name: name.count(".")):
        by_end.setdefault(name.rpartition(".")[2], []).append(name)
    ends = near_names(word, by_end, cutoff=0.8) if similar else [USUAL_NAMES.get(word, word)]
    dashes = "--" if origin == COMMAND_LINE else ""
    return suggestion(f"{dashes}{name}" for end in ends for name in by_end.get(end, []))


def explain(problem: Any, origins: dict[str, str]) -> str:
    """One error of pydantic -> "ORIGIN: KEY: what is wrong; what is allowed"; `origins` by dotted key."""
    parts = _path_of(problem)
    dotted = ".".join(str(part) for part in parts)
    key = _key_of(parts)
    if not key:  # a check over several sections
        return _of_check(problem)
    outer = [dotted, *(dotted.rsplit(".", n)[0] for n in range(1, len(parts)))]
    origin = next((origins[name] for name in outer if name in origins), "defaults")
    given, kind = problem.get("input"), problem["type"]
    shown = repr(given) if len(repr(given)) < 80 else f"{repr(given)[:77]}..."
    if parts[:2] == ["kd", "features"] and (entry := kd_methods.feature_losses.explain(parts[1:], problem)):
        return f"{origin}: {_key_of(['kd', *entry[0]])}: {entry[1]}"
    if kind == "union_tag_invalid":
        tag, known = problem["ctx"]["tag"].strip("'"), kd_methods.names()
        near = did_you_mean(tag, known, cutoff=CUTOFF)
        return f"{origin}: kd.type: unknown method {tag!r}{near} (known: {', '.join(known)})"
    if kind == "extra_forbidden":
        text = _unknown_key(parts, given, origin)
    elif kind == "literal_error":
        expected = problem["ctx"]["expected"]
        near = did_you_mean(given, re.findall("'(.*?)'", expected), cutoff=CUTOFF)
        text = f"is {shown}, allowed: {expected}{near}"
    elif kind == "list_type":
        items = {"teachers": "{key: value}", "features": "{loss: at}"}
        item = items.get(str(parts[-1]), "a, b")
        text = f"is {shown}, expected a list, such as {key}: [{item}]"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        text = f"is {shown}, expected a section: give keys below it, such as {key}: {{key: value}}"
        if origin == COMMAND_LINE and isinstance(given, str) and ":" in given:  # which splits {a:1,b:2}
            text = f"is {shown}: the shell split this value: quote it, with a space after each colon"
    elif kind in ("value_error", "assertion_error"):
        text = _of_check(problem)
    else:
        text = f"is {shown}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    return f"{origin}: {key}: {text}"


BRANCH = r"(list|literal|constrained-\w+)(\[.*\])?"  # of a union, as pydantic names it in the place of an error


def _key_of(parts: list[Any]) -> str:
    return re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part) for part in parts))


def _path_of(problem: Any) -> list[Any]:
    """The key of an error, without what pydantic adds: the method below `kd` and the branches of unions."""
    parts = [part for part in problem["loc"] if not re.fullmatch(BRANCH, str(part))]
    if parts[:1] == ["kd"] and len(parts) > 1 and parts[1] in kd_methods.names():
        del parts[1]
    while parts and parts[-1] in ("int", "float", "str", "bool", "list[int]", "constrained-int"):
        parts.pop()
    return parts


def _of_check(problem: Any) -> str:
    """What a check of the sections themselves says."""
    return str(problem["msg"].removeprefix("Value error, "))


def _unknown_key(parts: list[Any], given: Any, origin: str) -> str:
    """What to say of a key that no section has."""
    if parts == ["base"]:
        return "only a file that --config names can build on other files"
    if parts[:1] == ["kd"] and len(parts) == 2:
        owners = [name for name in kd_methods.names() if parts[1] in kd_methods.config_class(name).model_fields]
        if owners:
            return f"belongs to {', '.join(owners)}, not to this kd.type"
    known, word, hint = known_keys(parts[:-1]), str(parts[-1]), ""
    if parts[0] != "teachers" and not isinstance(given, dict):
        hint = _elsewhere(word, origin)
    hint = hint or did_you_mean(word, known, cutoff=CUTOFF)
    hint = hint or (_elsewhere(word, origin, similar=True) if len(parts) == 1 else "")
    return f"unknown key{hint or '; known here: ' + ', '.join(sorted(known))}"
