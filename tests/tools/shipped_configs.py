"""The YAML files in configs/, read as the command line reads them."""

from pathlib import Path

from kd_core.config import Config, command_line

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
TEACHERS = sorted((CONFIGS / "teachers").rglob("*.yaml"))
EXPERIMENTS = sorted(set(CONFIGS.rglob("*.yaml")) - set(TEACHERS))


def label(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


def load(path: Path, *overrides: str) -> Config:
    return command_line.parse(["--config", str(path.relative_to(ROOT)), *overrides])[1].config
