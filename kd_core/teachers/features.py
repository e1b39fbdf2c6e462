"""What feature losses need of a teacher, as rows of the cache: from which layers, under which key, in which order."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kd_core.models.features import Layers
from kd_methods._features import FeatureTerm
from kd_methods.feature_losses import Shape, loss_class

Values = tuple[Tensor, ...]  # what an entry of kd.features keeps of one teacher, each [B,...]


@dataclass(frozen=True)
class Kept:
    """What `kd.features` keeps of one teacher, each of it once, though several entries may need it.

    Args:
        rows: of each store, the shapes of one image's tensors and what the key of the store says of them.
        places: of each entry, the store that holds what it keeps; None if it keeps nothing.
    """

    rows: list[tuple[list[Shape], dict[str, Any]]]
    places: list[int | None]

    @classmethod
    def of(cls, term: FeatureTerm, layers: Layers, teacher: int) -> Kept:
        """What the feature term keeps of a teacher's `layers`."""
        rows, places = list[tuple[list[Shape], dict[str, Any]]](), list[int | None]()
        entries = zip(term.entries, term.kept_as(teacher), term.kept_shapes(teacher), strict=True)
        for entry, made, shapes in entries:
            about: dict[str, Any] = {
                "layers": [layers.teachers[teacher][place] for place in entry.teacher_layers(teacher)],
                **made,
            }
            if made:  # a loss that somebody works on must not find what an earlier version kept
                about["code"] = _digest_of_code(loss_class(entry.loss))
            known = [about == other for _, other in rows]
            if not shapes:
                places.append(None)
            elif any(known):
                places.append(known.index(True))
            else:
                places.append(len(rows))
                rows.append((shapes, about))
        return cls(rows, places)

    @property
    def widths(self) -> list[int]:
        """Values per image in each store."""
        return [sum(map(math.prod, shapes)) for shapes, _ in self.rows]

    @property
    def has_maps(self) -> bool:
        """Whether something has places besides its channels: maps or tokens."""
        return any(len(shape) > 1 for shapes, _ in self.rows for shape in shapes)

    def pack(self, kept: Sequence[Values]) -> list[Tensor]:
        """fp16 [B,width] for each store, of what each entry keeps."""
        chosen = [self.places.index(number) for number in range(len(self.rows))]
        return [torch.cat([values.flatten(1) for values in kept[entry]], 1) for entry in chosen]

    def unpack(self, stored: Sequence[Tensor]) -> list[Values]:
        """fp32 values for each entry, of the stores' fp16 [B,width]."""
        found = [
            tuple(
                part.unflatten(1, shape).float()
                for part, shape in zip(values.split([math.prod(shape) for shape in shapes], 1), shapes, strict=True)
            )
            for values, (shapes, _) in zip(stored, self.rows, strict=True)
        ]
        return [() if place is None else found[place] for place in self.places]


@cache
def _digest_of_code(cls: type) -> str:
    """Of the file in which a class was written."""
    with open(inspect.getfile(cls), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
