"""A toy program that behaves like train_kd.py (run folders, resuming, signals), and a folder to sweep it in."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from sweeps import run_local

ROOT = Path(__file__).parents[2]
GOOD = {"program": "p.py", "method": "random", "metric": {"name": "m", "goal": "maximize"}}
TOY = """
import json, os, pathlib, signal, sys, time

settings = {"output_dir": "runs", "training.max_epochs": "3", "x": "0", "fail": "", "peak": ""}
settings |= {"gate": "", "gate_epoch": "0", "free": ""}  # wait for a file after an epoch, unless x is free
for word in sys.argv[1:]:
    key, _, value = word.removeprefix("--").partition("=")
    settings[key] = value
output, epochs = pathlib.Path(settings["output_dir"]), int(settings["training.max_epochs"])
if settings["x"] == "mistake":
    print("x: 'mistake' is no number", file=sys.stderr)
    sys.exit(2)
if "print-config" in settings:
    base = pathlib.Path(sys.argv[0]).with_name("base.txt")  # stands for the file behind --config
    config = {"output_dir": str(output), "training": {"max_epochs": epochs}, "wandb": {"id": os.getpid()}}
    print(json.dumps(config | {"base": base.read_text() if base.exists() else ""}))
    sys.exit(0)
folder = output / f"toy-{os.environ['KD_TRIAL']}"
folder.mkdir(parents=True, exist_ok=True)
metrics, summary = folder / "metrics.jsonl", folder / "summary.json"

def stop(number, frame):
    summary.write_text(json.dumps({"status": "interrupted"}))
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
with open(output / "starts.txt", "a") as file:
    file.write(f"{os.environ['KD_TRIAL']} {done} {os.getpid()} {os.environ['WANDB_MODE']} {settings['x']}\\n")
summary.write_text(json.dumps({"status": "running"}))
(folder / "config.yaml").write_text(json.dumps(settings))
if settings["fail"] and settings["x"] in settings["fail"].split(","):
    print("some output")
    sys.exit("it broke")
for epoch in range(done, epochs):
    value = float(settings["x"]) + epoch / 100
    if settings["peak"]:
        value = float(settings["x"]) + (1 if epoch == int(settings["peak"]) else 0)
    with open(metrics, "a") as file:
        file.write(json.dumps({"epoch": epoch + 1, "val/score": value}) + "\\n")
    gated = settings["gate"] and epoch == int(settings["gate_epoch"]) and settings["x"] != settings["free"]
    while gated and not os.path.exists(settings["gate"]):
        time.sleep(0.01)
summary.write_text(json.dumps({"status": "finished"}))
"""


class Sandbox:
    """A folder with the toy and one sweep file."""

    def __init__(self, folder: Path):
        self.folder, self.output = folder, folder / "runs"
        (folder / "toy.py").write_text(TOY)
        self.sweep({"x": {"values": [1, 2, 3]}})

    def sweep(self, parameters: dict[str, Any], name: str = "s", **keys: Any) -> Path:
        content = {
            "program": str(self.folder / "toy.py"),
            "method": "grid",
            "metric": {"name": "val/score", "goal": "maximize"},
            "parameters": {"output_dir_": {"value": 0}, **parameters},
            **keys,
        }
        del content["parameters"]["output_dir_"]
        self.file = self.folder / f"{name}.yaml"
        self.file.write_text(yaml.safe_dump(content))
        return self.file

    def words(self, *words: str) -> list[str]:
        before, after = words, ()
        if "--" in words:
            before, after = words[: words.index("--")], words[words.index("--") + 1 :]
        return [str(self.file), *before, "--", f"--output_dir={self.output}", *after]

    def run(self, *words: str) -> int:
        return run_local.main(self.words(*words))

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "sweeps/run_local.py"), *self.words(*words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def starts(self) -> list[list[str]]:
        """[run id, epochs done before, pid, WANDB_MODE, x] of each start of the toy."""
        file = self.output / "starts.txt"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def results(self) -> Path:
        return self.output / "sweeps" / self.file.stem

    def table(self) -> list[dict[str, str]]:
        with open(self.results / "trials.csv") as file:
            return list(csv.DictReader(file))
