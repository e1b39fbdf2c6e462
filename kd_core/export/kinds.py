"""The kinds of exports, and checks of a command that asks for them; imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kd_core.errors import UserError, first_line

ABOUT = "preprocessing.json"
CARD = "README.md"
FILES = {  # of each kind of export
    "timm": ("config.json", "model.safetensors", CARD),
    "onnx": ("model.onnx", ABOUT, CARD),
    "program": ("model.pt2", ABOUT, CARD),
    "hub": ("config.json", "model.safetensors", CARD),
    "onnx-int8": ("model.onnx", ABOUT, CARD),
}


def requirements_of(kinds: Sequence[str]) -> None:
    """UserError if a package that an export of `kinds` needs is not installed."""
    wanted = [kind for kind in kinds if kind.startswith("onnx")]
    if not wanted:
        return
    try:
        import onnx  # noqa: F401 - not above: heavy, and only these kinds need them
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - torch.onnx uses it
    except ImportError as error:
        raise UserError(
            f"--export {wanted[0]}: {first_line(error, 200)}; run: pip install -r requirements-export.txt"
        ) from None


def check_repo(name: str | None, *, push: bool) -> str:
    """`name` as the name of a repository, ORG/NAME; UserError if it is none, or to `push` without credentials."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    if not name or not re.fullmatch(r"[^/]+/[^/]+", name):
        raise UserError(f"--repo: is {name!r}: ORG/NAME is needed, as in --repo my-name/my-student")
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--repo: is {name!r}: {first_line(error, 200)}") from None
    if push and huggingface_hub.get_token() is None:
        raise UserError("--push: no credentials for the Hub; run 'hf auth login' or set HF_TOKEN, then try again")
    return name
