"""Runs of train_kd.py to measure: whole runs, and runs that alternate epoch by epoch."""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kd_methods
import train_kd
from kd_core.run.folder import read_metrics

# A network so fast that the training loop dominates the time.
TINY: dict[str, Any] = {"name": "test_vit", "img_size": 32, "args": {"patch_size": 16}}


def words(
    home: Path,
    name: str,
    data: Path,
    *,
    student: Mapping[str, Any],
    epochs: int,
    val: int,
    teachers: Sequence[Path] = (),
    view: str = "shared",
    batch: int = 128,
    method: str = "average",
    more: Sequence[str] = (),
) -> list[str]:
    """The command line of a run in `home`; `more` overrides what is set here."""
    base = home / "defaults.yaml"  # without a file, train_kd.py starts from the quickstart's settings
    home.mkdir(parents=True, exist_ok=True)
    base.write_text("{}\n")
    team = ", ".join(f"{{weights: {folder}, view: {view}}}" for folder in teachers)
    return replaced([
        f"--config={base}", "--fresh", f"--name={name}",
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}",
        "--data.source=parquet", f"--data.path={data}", f"--data.val_size={val}", f"--data.batch_size={batch}",
        f"--model={as_word(student)}",
        f"--teachers=[{team}]", f"--kd.type={method if teachers else kd_methods.LABEL_ONLY}",
        f"--training.max_epochs={epochs}", "--training.compare_with_baseline=false", *more,
    ])  # fmt: skip


def as_word(values: Mapping[str, Any]) -> str:
    """Settings as a command-line argument: JSON is YAML."""
    return json.dumps(values)


def replaced(given: list[str]) -> list[str]:
    """A command line without the arguments that a later one overrides: each key may occur once."""
    return list({word.partition("=")[0]: word for word in given}.values())


def train(arguments: list[str]) -> Path:
    """Run the whole training; returns the run folder."""
    with quiet():
        train_kd.main(arguments)
    return folder_of(arguments)


def folder_of(arguments: list[str]) -> Path:
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    [folder] = Path(given["--output_dir"]).glob(f"{given['--name']}-????????")
    return folder


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """A finished run's rows of metrics per epoch, without the first epoch, which warms up."""
    return [row for row in read_metrics(folder / "metrics.jsonl") if row.get("epoch", 0) > 1]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class Turn:
    """A run of train_kd.py in this process that trains one epoch per call.

    So runs can alternate epoch by epoch, which keeps changes of the machine's speed out of their ratios.  Nothing
    between two epochs is measured.
    """

    def __init__(self, arguments: list[str]):
        self._rows = train_kd.epochs_of(arguments)
        self.row: dict[str, Any] = {}  # metrics of the last epoch

    def epoch(self) -> dict[str, Any]:
        """Train an epoch; returns its metrics."""
        with quiet():
            self.row = next(self._rows)
        return self.row

    def step_seconds(self) -> float:
        """Train an epoch; returns its seconds per step."""
        return float(self.epoch()["train/step_time"])

    def close(self) -> None:
        """End the run, finished or not."""
        with quiet():
            self._rows.close()


@contextlib.contextmanager
def turns(arguments: dict[str, list[str]]) -> Iterator[dict[str, Turn]]:
    """Alternating runs by name; all are closed at the end of the block."""
    with contextlib.ExitStack() as cleanup:
        runs = {name: Turn(given) for name, given in arguments.items()}
        for run in runs.values():
            cleanup.callback(run.close)
        yield runs


def trained_teachers(
    home: Path,
    data: Path,
    networks: Sequence[Mapping[str, Any]],
    *,
    val: int,
    epochs: int = 8,
    more: Sequence[str] = (),
) -> list[Path]:
    """Run folders of teachers that are better than chance; equal networks differ in their seeds."""
    folders = []
    for seed, network in enumerate(networks):
        own = [f"--training.seed={seed}", "--training.learning_rate=0.003", "--no-wandb", *more]
        name = f"teacher{seed}"
        folders.append(train(words(home, name, data, student=network, epochs=epochs, val=val, batch=64, more=own)))
    return folders
