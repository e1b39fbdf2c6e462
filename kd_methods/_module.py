"""Modules that import torch when one is made, so that settings in the same file are read without it."""

import functools
from typing import TYPE_CHECKING, Any

from kd_methods._torch import torch

if TYPE_CHECKING:
    from torch.nn import Module
else:
    Module = object  # until there is an instance: see `as_module`


@functools.cache
def as_module(cls: Any) -> Any:
    """`cls` as a subclass of nn.Module: the class of the instances of a subclass `cls` of LazyModule.

    `class KDMethod(nn.Module)` would import torch wherever a method's settings are read, as its Config is in the same
    file. Instances need torch anyway.
    """
    if issubclass(cls, torch.nn.Module):
        return cls
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "_written_as": cls}
    return type(cls.__name__, (cls, torch.nn.Module), names)


class LazyModule(Module):
    """Its instances are nn.Modules: parameters, `to`, `state_dict` and the like work as usual."""

    def __new__(cls: Any, *_: Any, **__: Any) -> Any:
        return object.__new__(as_module(cls))

    def __reduce__(self) -> Any:
        # Copies are made from the class as it was written, which pickle can find by its name.
        return LazyModule.__new__, (vars(type(self)).get("_written_as", type(self)),), self.__dict__


def identity(values: Any) -> Any:
    """`values`: what a module does in one process where a loop with several replaces it."""
    return values
