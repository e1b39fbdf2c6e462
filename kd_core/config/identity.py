"""What makes two runs the same run: a hash of every setting and file that shapes the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kd_methods
from kd_core.config import own_code, registry
from kd_core.config.read import find_file, read_yaml
from kd_core.config.schema import Config
from kd_core.files import json_sha256, sha256_of

# Raised whenever training itself changes its arithmetic, so that stored teachers are trained again.
RECIPE_VERSION = 2
# Keys of `data` and `data.unlabeled` that say where images lie and what their columns are called, not which they are.
PLACE_OF_DATA = ("source", "name", "subset", "revision", "path", "folders", "image_column", "label_column")


def digest(config: Config, data_fingerprint: str) -> str:
    """Hash of everything that shapes the result; two runs with equal digests are the same run."""
    return _hash(identity_of(config, data_fingerprint))


def group(config: Config, data_fingerprint: str) -> str:
    """The name that runs share which differ in nothing but `training.seed`."""
    identity = identity_of(config, data_fingerprint)
    del identity["training"]["seed"]
    return f"{config.experiment}-{_hash(identity)[:6]}"


def identity_of(config: Config, data_fingerprint: str) -> dict[str, Any]:
    """The settings that shape the result, with the content of the files that they name.

    Settings that came later are left out at their default, which keeps the digests of older runs.

    UserError if a teacher's recipe cannot be read.
    """
    values = config.model_dump(mode="json")
    for section in ("output_dir", "wandb", "cache", "name", "evaluation"):
        del values[section]
    values["training"]["mixed_precision"] = config.training.mixed_precision or "no"  # null: the launcher said nothing
    for key in ("log_every", "save_every_steps", "save_every_minutes", "compile", "compile_mode"):
        del values["training"][key]
    del values["training"]["compare_with_baseline"]
    del values["data"]["num_workers"], values["data"]["store"]
    if config.cache.mode == "fixed" and config.teachers:  # the one mode that changes what the student sees
        values["fixed_views"] = config.cache.views
    if not config.training.skip_nonfinite:
        del values["training"]["skip_nonfinite"]
    for key in ("folders", "test_size"):
        if values["data"][key] is None:
            del values["data"][key]
    values["teachers"] = [_identity_of_teacher(teacher) for teacher in values["teachers"]]
    del values["import"]  # the content of the files matters, not where they lie
    own = [own_code.file(path) for path in config.imports]
    if code := sorted(file.digest for file in own if not file.adds_methods_alone):
        values["import"] = code
    # The student alone can use no method, whatever file is named.
    code = sorted(file.digest for file in own if file.adds_methods_alone)
    if code and config.kd.type != kd_methods.LABEL_ONLY:
        values["kd"]["code"] = code  # in the kd section, so that your own method can be compared with others
    return {"recipe": RECIPE_VERSION, "images": data_fingerprint, **values}


def without_place(identity: dict[str, Any]) -> dict[str, Any]:
    """A run's identity without the folders that its images lie in.  Its fingerprint says which they are."""
    data = identity.get("data")
    if not isinstance(data, dict):  # of a damaged file
        return identity
    own = {**data, "path": None}
    if isinstance(own.get("unlabeled"), dict):
        own["unlabeled"] = {**own["unlabeled"], "path": None}
    return {**identity, "data": own}


def _identity_of_teacher(teacher: dict[str, Any]) -> dict[str, Any]:
    """The settings of one teacher, with digests in place of the names of files."""
    own = dict(teacher)
    if own["weights"] and (content := _content_of(own["weights"])):
        own["weights"] = content  # the content of a file matters, not its name or folder
    if own["logits"] and (file := Path(own["logits"]).expanduser()).is_file():
        own["logits"] = sha256_of(file)
    del own["trained_on"]  # it changes nothing that is learned
    for key in ("logits", "class_order"):
        if own[key] is None:
            del own[key]
    if own["train"]:
        own["train"] = read_yaml(find_file(own["train"], "teachers[].train"))
    return own


def _hash(identity: dict[str, Any]) -> str:
    return json_sha256(identity, sort_keys=True)[:16]


def _content_of(source: str) -> str | None:
    """Digest of a teacher's weights on this machine: a checkpoint file, an export, a run folder or an artifact."""
    if source == "pretrained":  # timm's own, also where a folder has this name
        return None
    path = Path(source).expanduser()
    if download := registry.downloads.get(source.removeprefix("wandb:")) if source.startswith("wandb:") else None:
        path = download.folder
    candidates = [path, *(path / part / "model.safetensors" for part in ("student", "checkpoints/best/student", "."))]
    return next((sha256_of(file) for file in candidates if file.is_file()), None)
