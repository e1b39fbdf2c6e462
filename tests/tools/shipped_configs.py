"""The YAML files in configs/, read as the command line reads them."""

from functools import cache
from pathlib import Path

from kd_core.config import Config, command_line

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
TEACHERS = sorted((CONFIGS / "teachers").rglob("*.yaml"))
PAIR_FILES = sorted((CONFIGS / "papers" / "pairs").glob("*.yaml"))
LOSS_FILES = sorted((CONFIGS / "papers" / "losses").glob("*.yaml"))
STRONG_FILES = sorted((CONFIGS / "papers" / "strong").glob("*.yaml"))
TRIO_FILES = sorted((CONFIGS / "papers" / "trios").glob("*.yaml"))
WEIGHTING_FILES = sorted((CONFIGS / "papers" / "weightings").glob("*.yaml"))
PROTOCOL, RESULT_FILES = CONFIGS / "results" / "protocol.yaml", sorted((CONFIGS / "results").glob("*/*.yaml"))
PARTS = {
    *TEACHERS, *PAIR_FILES, *LOSS_FILES, *STRONG_FILES, *TRIO_FILES, *WEIGHTING_FILES, PROTOCOL, *RESULT_FILES
}  # fmt: skip
EXPERIMENTS = sorted(set(CONFIGS.rglob("*.yaml")) - PARTS)


def label(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def load(path: Path, *overrides: str) -> Config:
    return combine([path], *overrides)


def combine(paths: list[Path], *overrides: str) -> Config:
    files = [word for path in paths for word in ("--config", str(path.relative_to(ROOT)))]
    return _parsed(*files, *overrides)


@cache  # many tests look at the same few files
def _parsed(*words: str) -> Config:
    return command_line.parse(list(words))[1].config
