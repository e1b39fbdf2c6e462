"""Digests of all shipped experiments and teachers: a setting that is added must not turn known runs into other runs."""

import json
from pathlib import Path

import pytest
from shipped_configs import CONFIGS, EXPERIMENTS, TEACHERS, load

from kd_core.config import digest, parse_overrides, resolve, with_precision
from kd_core.teachers import load as teachers

KNOWN = json.loads((Path(__file__).parents[1] / "golden" / "digests.json").read_text())
FINGERPRINT = "0" * 64


def digests(path: Path) -> list[str]:
    """The digest of a run by this file and of every teacher that it trains on demand."""
    if path in TEACHERS:
        recipe = f"--teachers=[{{model: cifar_resnet20, train: {path}}}]"
        run = resolve([parse_overrides(["--kd.type=average", recipe])]).config
        return [digest(teachers.training_config(run, 0), FINGERPRINT)]
    run = load(path)
    if run.training.mixed_precision == "auto":  # as it was before it was measured
        run = with_precision(run, "bf16")
    on_demand = [index for index, teacher in enumerate(run.teachers) if teacher.train]
    return [digest(own, FINGERPRINT) for own in (run, *(teachers.training_config(run, index) for index in on_demand))]


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_runs_keep_their_digests(name: str) -> None:
    assert digests(CONFIGS / name) == KNOWN[name]


def test_every_shipped_file_has_a_known_digest() -> None:
    """`PYTHONPATH=.:tests/tools python tests/config/test_identity.py` adds those of new files."""
    assert set(KNOWN) == {str(path.relative_to(CONFIGS)) for path in (*EXPERIMENTS, *TEACHERS)}


if __name__ == "__main__":
    added = {str(path.relative_to(CONFIGS)): path for path in (*EXPERIMENTS, *TEACHERS)}
    found = KNOWN | {name: digests(path) for name, path in added.items() if name not in KNOWN}
    target = Path(__file__).parents[1] / "golden" / "digests.json"
    target.write_text(json.dumps(dict(sorted(found.items())), indent=0) + "\n")
