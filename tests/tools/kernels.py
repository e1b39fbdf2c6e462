"""Counting the operations that a loss computes with."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class CountKernels(TorchDispatchMode):
    """Counts operations that compute, and refuses those that make the host wait."""

    FREE = {"detach", "expand", "promote_types", "select", "split", "squeeze", "unbind", "unsqueeze", "view"}
    WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} makes the host wait for the device"
        if name.removesuffix("_copy") not in self.FREE and not name.startswith("split_with_sizes"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))
