"""Reference values of losses, weightings and feature terms: tests/golden/grid.npz and grid.json, by case and key.

They come from other projects' own code, run in fp64 on the inputs in grid.npz. An entry holds `value` or `values`, and
`grads` by the name of the input: `l2`, the norm of the gradient g; `first5`, its first entries; `dot_cos`, the sum of
g[n] cos(n) over the flattened g; for tokens `first_patch_token5`, the first entries of sample 0, token 1.

    entry = grid.entries(case)[key]
    inputs = grid.inputs(case, dtype, leaves=entry.get("grads", ()))
    grid.compare(entry, value, {name: gradient of inputs[name]}, dtype)

or `grid.check(case, key, function of the inputs, dtype)`, which does all of it. The environment variable KD_GRID names
another folder with files of these names.
"""

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(os.environ.get("KD_GRID") or Path(__file__).parents[1] / "golden")
DTYPES = (torch.float64, torch.float32)
VALUE, GRADIENT = 1e-9, 1e-6  # relative tolerances in fp64
IN_FP32 = 1e-5, 2e-5  # for values and gradients: usual, and where the reference's own code loses more than 1e-6
ROUGH = "abkd_limit/", "weighting/aekd"  # code that works in fp32, and a solver that stops early: 1e-5


@functools.cache
def _files() -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    with np.load(FOLDER / "grid.npz", allow_pickle=False) as arrays:
        return json.loads((FOLDER / "grid.json").read_text()), dict(arrays)


def cases() -> list[str]:
    return list(_files()[0])


def entries(case: str) -> dict[str, dict[str, Any]]:
    """The entries of a case by key."""
    return _files()[0][case]


def keys() -> list[str]:
    """The keys of all cases, each once, sorted."""
    return sorted({key for case in cases() for key in entries(case)})


def pairs(*prefixes: str) -> list[tuple[str, str]]:
    """(case, key) of all entries whose key starts with one of `prefixes`."""
    return [(case, key) for key in keys() if key.startswith(prefixes) for case in cases() if key in entries(case)]


def inputs(case: str, dtype: torch.dtype = torch.float64, leaves: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a case by name, new ones at each call: floats of type `dtype`, integers int64.

    `leaves` names those that require gradient.
    """
    prefix = f"{case}/"
    tensors = {
        name.removeprefix(prefix): torch.tensor(array, dtype=dtype if array.dtype.kind == "f" else torch.int64)
        for name, array in _files()[1].items()
        if name.startswith(prefix)
    }
    for name in leaves:
        tensors[name].requires_grad_()
    return tensors


def tolerances(key: str, entry: Mapping[str, Any], dtype: torch.dtype) -> tuple[float, float]:
    """Relative tolerances of values and of gradients."""
    if dtype == torch.float32:
        return (IN_FP32[entry.get("fp32_rel", 0) > 1e-6], IN_FP32[entry.get("fp32_grad_rel", 0) > 1e-6])
    return (1e-5, 1e-5) if key.startswith(ROUGH) else (VALUE, GRADIENT)


def compare(
    key: str, entry: Mapping[str, Any], value: Tensor, gradients: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Assert that `value` and the `gradients` by name are the entry's; every gradient that it holds has to be given.

    An absolute deviation is allowed too: of a value at 1e-12 of the largest, of parts of a gradient at the relative
    tolerance of its norm, as a part may cancel to nearly 0.
    """
    of_values, of_gradients = tolerances(key, entry, dtype)
    expected = torch.tensor(entry["value"] if "value" in entry else entry["values"], dtype=torch.float64)
    close(value, expected, of_values, 1e-12 * expected.abs().max().item(), "value")
    expected_gradients = entry.get("grads", {})
    assert gradients.keys() >= expected_gradients.keys(), sorted(expected_gradients.keys() - gradients.keys())
    for name, wanted in expected_gradients.items():
        gradient = gradients[name].double()
        flat, size = gradient.flatten(), wanted["l2"]
        parts = {
            "l2": flat.norm(),
            "first5": flat[:5],
            "dot_cos": flat @ torch.arange(len(flat), dtype=torch.float64).cos(),
        }
        if "first_patch_token5" in wanted:
            parts["first_patch_token5"] = gradient[0, 1, :5]
        for part, actual in parts.items():
            close(actual, torch.tensor(wanted[part]), of_gradients, of_gradients * size, f"gradient of {name}: {part}")


def close(actual: Tensor, expected: Tensor, rtol: float, atol: float, what: str) -> None:
    torch.testing.assert_close(
        actual.detach().double(), expected.double(), rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}"
    )


def check(case: str, key: str, function: Callable[[dict[str, Tensor]], Tensor], dtype: torch.dtype) -> None:
    """Compare what `function` makes of the inputs, and its gradients with respect to them, with the entry."""
    entry = entries(case)[key]
    names = list(entry.get("grads", ()))
    tensors = inputs(case, dtype, names)
    value = function(tensors)
    gradients = torch.autograd.grad(value, [tensors[name] for name in names]) if names else ()
    compare(key, entry, value, dict(zip(names, gradients, strict=True)), dtype)
