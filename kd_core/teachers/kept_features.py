"""What feature losses need of a teacher, in the cache: rows, under which key and in which order, and once the facts."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock
from pydantic import PositiveInt, TypeAdapter
from torch import Tensor, nn

from kd_core.config import CacheConfig
from kd_core.errors import UserError
from kd_core.files import json_sha256, sha256_of, write_bytes, write_json, writing
from kd_core.models.layer_features import Layers, WithFeatures
from kd_core.models.weights import read_safetensors
from kd_core.teachers.cache import described, key_of, logits_folder, make_room
from kd_core.teachers.load import Reordered, Teacher
from kd_methods._feature_term import FeatureTerm
from kd_methods.feature_losses import Layer, Shape, loss_class
from kd_methods.feature_losses._base import Classifier

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
    return sha256_of(Path(inspect.getfile(cls)))[:12]


# --------------------------------------------------------------------------------------------------- besides rows


@dataclass(frozen=True)
class FeatureFacts:
    """What a run needs of a teacher's features besides rows.

    Args:
        who: names the teacher in messages.
        shapes: of one image's features, at each of `layers`.
        classifier: fp32 weight [C,D] and bias [C] of the last linear layer, rounded to fp16; None if no loss needs it.
    """

    who: str
    layers: list[Layer]
    shapes: list[Shape]
    classifier: Classifier | None

    @classmethod
    def of(cls, source: WithFeatures, network: nn.Module) -> FeatureFacts:
        """Those of a teacher's network, whose classes may be in another order than those of `source`."""
        order = network.order if isinstance(network, Reordered) else slice(None)
        given = source.classifier
        rounded = given and (given[0].detach()[order].half().float(), given[1].detach()[order].half().float())
        return cls(source.who, source.layers, source.shapes, rounded)


@dataclass(frozen=True)
class _Known:
    """Layers with their shapes, and the layers that the head is known to pool for the last linear layer."""

    shapes: list[tuple[Layer, tuple[PositiveInt, ...]]]
    pooled: list[Layer]


class KeptFacts:
    """The facts about one teacher's features that runs have found, so that its network is not built for them again.

    A folder among the stores, listed and erased with them.  One checksum covers all; damage counts as nothing kept.
    """

    def __init__(self, teacher: Teacher, cache: CacheConfig):
        assert teacher.views is not None
        self._teacher, self._max_gb = teacher, cache.max_gb
        self._key = key_of({"features of": teacher.digest, "size": teacher.views.size})
        self._folder = logits_folder(cache.folder) / self._key
        self._about, self._file = self._folder / "about.json", self._folder / "classifier.safetensors"

    def find(self, layers: list[Layer], pooled: list[Layer]) -> FeatureFacts | None:
        """Those about `layers`, with the last linear layer if the head has to pool `pooled`; None if any is missing."""
        known, classifier = self._read()
        shapes = dict(known.shapes)
        if not (shapes.keys() >= {*layers} and {*known.pooled} >= {*pooled}):
            return None
        return FeatureFacts(
            self._teacher.who, layers, [shapes[layer] for layer in layers], classifier if pooled else None
        )

    def add(self, facts: FeatureFacts, pooled: list[Layer]) -> None:
        """Keep what a network has told beside what is kept; UserError on a full disk."""
        before, classifier = self._read()
        shapes = {**dict(before.shapes), **dict(zip(facts.layers, facts.shapes, strict=True))}
        known = _Known(list(shapes.items()), list(dict.fromkeys([*before.pooled, *pooled])))
        last = zip(("weight", "bias"), facts.classifier or classifier or (), strict=False)  # () where no loss needs it
        content = safetensors.torch.save({name: values.cpu() for name, values in last})
        check = self._checksum(known, hashlib.sha256(content).hexdigest())
        about = {"teacher": self._teacher.name, "view": "layers' shapes and last linear layer"}
        with writing(self._folder):
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder.parent / ".lock"):
                make_room(self._folder.parent, self._max_gb, len(content))
                self._folder.mkdir(exist_ok=True)
                write_bytes(self._file, content)
                write_json(self._about, {**about, "facts": asdict(known), "check": check})

    def _read(self) -> tuple[_Known, Classifier | None]:
        """What is kept, with the last linear layer if a loss has asked for it; nothing if any of it is damaged."""
        try:
            about = described(self._folder)
            known = TypeAdapter(_Known).validate_python(about["facts"])
            if about["check"] == self._checksum(known, sha256_of(self._file)):
                os.utime(self._about)  # records the last use
                return known, self._classifier(known)
        except (UserError, OSError, ValueError, LookupError):
            pass  # missing or damaged: found again and written by `add`
        return _Known([], []), None

    def _checksum(self, known: _Known, digest: str) -> str:
        return json_sha256([self._key, asdict(known), digest])

    def _classifier(self, known: _Known) -> Classifier | None:
        """The last linear layer; ValueError if it is not one for these classes and the layers that are pooled."""
        if not known.pooled:
            return None
        # Copies, since results can depend on where in memory a tensor begins.
        weight, bias = (read_safetensors(self._file, str(self._file))[name].clone() for name in ("weight", "bias"))
        shapes, classes = dict(known.shapes), self._teacher.num_classes
        widths = {shapes[layer][0 if len(shapes[layer]) == 3 else -1] for layer in known.pooled}
        if {(*weight.shape, *bias.shape)} != {(classes, width, classes) for width in widths}:
            raise ValueError(f"weight {list(weight.shape)}, bias {list(bias.shape)}")
        if {weight.dtype, bias.dtype} != {torch.float32}:
            raise ValueError(f"{weight.dtype}, {bias.dtype}")
        return weight, bias
