"""Layouts of checkpoints: where they keep a network's weights, and under which names.

Containers (`{"epoch": 9, "state_dict": ...}`), names of wrappers (DataParallel, torch.compile, a Lightning module) and
counters that tools add are removed; nothing else is dropped silently.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from kd_core.errors import UserError
from kd_core.zoo.public_names import to_zoo_names

# Keys under which training scripts keep a state dict; of several, the first is used and reported.  Averaged weights
# come before all others, as in timm's `load_state_dict`, since the published accuracy is theirs.
CONTAINERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "student",
    "net",
    "net_state_dict",
    "network",
    "network_state_dict",
    "module",
    "params",
    "weights",
)
AVERAGED = {"ema", "swa", "averaged"}  # words in keys of averaged weights, as in "state_dict_ema"
OTHERS = {"optimizer", "optim", "teacher", "discriminator"}  # words in keys of other content
DEPTH = 4  # levels of containers, and of modules around a network
WRAPPERS = ("module", "_orig_mod")  # in front of every name, by DataParallel and torch.compile
INNER_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # within a name, too
COUNTERS = ("n_averaged", "total_ops", "total_params")  # of torch's AveragedModel, and of the profiler thop
BATCH_COUNTER = ".num_batches_tracked"  # torch fills it in if old checkpoints lack it


def find_state_dict(content: Any, origin: str, notify: Callable[[str], None]) -> dict[str, Tensor]:
    """Parameter names to tensors of a checkpoint's content, without names of wrappers and counters.

    `notify` is called with one line on which weights are used, if there are several.

    Raises:
        UserError: beginning with `origin`; no state dict, several with none clearly the network's, or names
            that collide.
    """
    candidates = list(_candidates(content))
    if not candidates:
        if own := _tensors(content):
            left = ", ".join(repr(str(key)) for key in content if key not in own)
            notify(f"the weights at its top level are taken; beside them are {left}")
            return _without_wrappers(own, origin)
        held = (
            f"the keys {', '.join(map(str, list(content)[:8])) or 'none'}"
            if isinstance(content, dict)
            else f"a {type(content).__name__}"
        )
        raise UserError(f"{origin}: no state dict at the top level or under any key (found {held})")
    ranked = sorted(candidates, key=lambda candidate: _rank(candidate[0]))
    path, chosen = ranked[0]
    others = [_shown(other) for other, _ in ranked[1:]]
    if others and _rank(path) == _rank(ranked[1][0]) and _rank(path) >= len(CONTAINERS):
        raise UserError(
            f"{origin}: holds several state dicts ({', '.join([_shown(path), *others])}) and does not say which is the "
            "network's; save the state dict of the network alone"
        )
    if others:
        averaged = "the averaged weights " if _rank(path) < 0 else ""
        notify(f"{averaged}{_shown(path)} are taken; the file also holds {', '.join(others)}")
    elif path and _rank(path) >= len(CONTAINERS):
        notify(f"the weights under {_shown(path)} are taken")
    return _without_wrappers(_tensors(chosen), origin)


def _candidates(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(keys, dict) of each dict within `content` that looks like a state dict; optimizers are skipped."""
    if not isinstance(content, dict) or "param_groups" in content or not all(isinstance(key, str) for key in content):
        return
    if _tensors(content) and all(isinstance(value, (Tensor, *_PLAIN)) for value in content.values()):
        yield path, content
    elif len(path) < DEPTH:
        for key, value in content.items():
            yield from _candidates(value, (*path, key))


_PLAIN = (int, float, str, bool, type(None), np.generic)  # values among parameters that are none


def _tensors(content: Any) -> dict[str, Tensor]:
    """The named tensors of a dict, if any of them can be a weight: of floats, and no single number."""
    if not isinstance(content, dict):
        return {}
    found = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return found if any(value.ndim and value.is_floating_point() for value in found.values()) else {}


def _rank(path: tuple[str, ...]) -> int:
    """The place of a state dict among several: the lowest is taken."""
    words = {word for key in path for word in re.split(r"[\W_]+", key.lower())}
    if words & OTHERS:
        return len(CONTAINERS) + 1
    if words & AVERAGED:
        return -1
    name = path[-1].lower() if path else ""
    return CONTAINERS.index(name) if name in CONTAINERS else len(CONTAINERS)


def _shown(path: tuple[str, ...]) -> str:
    return repr(".".join(path))


def _without_wrappers(state_dict: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    def plain(name: str) -> str:
        parts = name.split(".")
        while parts[0] in WRAPPERS and len(parts) > 1:
            del parts[0]
        return ".".join(part for part in parts if part not in INNER_WRAPPERS)

    counters = [name for name, value in state_dict.items() if name.split(".")[-1] in COUNTERS and value.numel() == 1]
    return _renamed({name: value for name, value in state_dict.items() if name not in counters}, plain, origin)


def _renamed(state_dict: dict[str, Tensor], rename: Callable[[str], str], origin: str) -> dict[str, Tensor]:
    """`state_dict` under other names; UserError if two names become one."""
    names = Counter(rename(name) for name in state_dict)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{origin}: holds {twice[0]!r} twice, with and without a wrapper's name before it")
    return {rename(name): tensor for name, tensor in state_dict.items()}


def network_names(
    architecture: str, wanted: dict[str, Tensor], state_dict: dict[str, Tensor], where: str
) -> dict[str, Tensor]:
    """`state_dict` under the names of a network of which `wanted` is the own state dict.

    Names of public checkpoints are translated (`zoo/public_names.py`), and a prefix that all of the network's names
    have is removed, such as Lightning's `model.`.  If nothing fits, the closest names are returned,
    for a message that shows the differences.

    Raises:
        UserError: beginning with `where`; the file holds other modules beside the network, or several networks.
    """
    needed = {name for name in wanted if not name.endswith(BATCH_COUNTER)}

    def translated(names: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_zoo_names(architecture, names)

    def under(prefix: str) -> dict[str, Tensor]:
        own = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
        return translated(own)

    as_it_is = translated(state_dict)
    if needed <= as_it_is.keys():
        return as_it_is
    if any(".module." in name for name in state_dict):  # DataParallel around a part of the network
        inner = _renamed(state_dict, lambda name: name.replace(".module.", "."), where)
        found = network_names(architecture, wanted, inner, where)
        if needed <= found.keys():
            return found
    shared = {prefix: sum(name in needed for name in under(prefix)) for prefix in _prefixes(state_dict, len(needed))}
    fitting = [prefix for prefix, count in shared.items() if count == len(needed)]
    if len(fitting) > 1:
        raise UserError(
            f"{where}: the file holds several such networks, under {' and '.join(map(repr, fitting))}; save the state "
            "dict of one of them alone"
        )
    if fitting:
        prefix = fitting[0]
        if others := [name for name in state_dict if not name.startswith(prefix)]:
            raise UserError(
                f"{where}: {counted(others, 'unexpected')}: beside the network, which is under {prefix!r}, the file "
                "holds other modules; save the state dict of the network alone"
            )
        return under(prefix)
    closest = max(shared, key=shared.__getitem__, default="")
    if shared.get(closest, 0) > max(len(needed) / 2, sum(name in needed for name in as_it_is)):
        return under(closest) | {name: value for name, value in state_dict.items() if not name.startswith(closest)}
    return as_it_is


def _prefixes(state_dict: dict[str, Tensor], least: int) -> list[str]:
    """What at least half of `least` names begin with: one to `DEPTH` modules' names and their dots."""
    counts: Counter[str] = Counter()
    for name in state_dict:
        parts = name.split(".")[:-1]
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(DEPTH, len(parts)) + 1))
    return [prefix for prefix, count in counts.items() if 2 * count >= least]


def counted(names: list[str], what: str) -> str:
    """`3 missing keys (a, b, c)`; nothing for no names."""
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} key{'s'[: len(names) > 1]} ({', '.join(names[:3])}{more})" if names else ""
