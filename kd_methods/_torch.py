"""torch, imported when a loss is first computed: settings and help are read without it, which saves three seconds.

Files of this package write `from kd_methods._torch import Tensor, torch` and then use both as usual, outside of class
statements and default values.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    torch = _Torch()
    Tensor = Any

__all__ = ["Tensor", "torch"]
