"""Runs of the scripts against the stub of W&B's server, and what the server has received."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from run_metrics import times_apart
from wandb_stub import StubServer
from warm_process import WarmProcess

import kd_methods
from kd_core.run.folder import read_metrics

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "stub/kd"
LABEL_ONLY = kd_methods.LABEL_ONLY
METHODS = [name for name in kd_methods.names() if name != LABEL_ONLY]
WANDB = str(Path(sys.executable).with_name("wandb"))


@contextmanager
def serving(folder: Path) -> Iterator[StubServer]:
    """A stub server; fails at the end if it received a request that it does not know."""
    with StubServer(folder / "server") as server:
        yield server
        server.lift_faults()
    strange = [(folder / "server" / name) for name in ("unresolved.jsonl", "errors.jsonl")]
    assert not any(path.exists() for path in strange), [path.read_text() for path in strange if path.exists()]


def settings(home: Path, *more: str, method: str = LABEL_ONLY, teachers: list[str] | None = None) -> list[str]:
    """The arguments of a tiny run on digits."""
    team = ", ".join(f"{{weights: {path}}}" for path in teachers or [])
    return [
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}", "--wandb.project=kd", "--name=small",
        "--model={name: cifar_resnet8}", f"--teachers=[{team}]", f"--kd.type={method}", "--data.train_size=300",
        "--training.max_epochs=3", "--training.log_every=4", "--training.compare_with_baseline=false",
        "--evaluation.report=false", *more,
    ]  # fmt: skip


def surroundings(home: Path, server: StubServer | None, **more: str) -> dict[str, str]:
    """An environment without this machine's W&B settings; rows are sent every second."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    (home / "home").mkdir(parents=True, exist_ok=True)
    there = server.env(home / "wandb-home") if server else {}
    there |= {"WANDB_DIR": str(home)}  # where the commands `wandb sweep` and `wandb agent` leave their files
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # agents start `python`
    own = {
        "PATH": path,
        "HOME": str(home / "home"),
        "OMP_NUM_THREADS": "1",
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
    }
    return {**clean, **there, **own, **more}


def start(words: list[str], environment: dict[str, str], cwd: Path = ROOT) -> subprocess.Popen | WarmProcess:
    """Scripts and modules run by this Python are forked from a warm process; other commands start normally."""
    if words[0] == sys.executable and words[1] != "-c" and "torch.distributed.run" not in words:
        return WarmProcess(words[1:], env=environment, cwd=cwd)
    return subprocess.Popen(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def done(process: subprocess.Popen | WarmProcess, status: int = 0) -> str:
    """What a process printed, once it has ended with `status`."""
    text, _ = process.communicate(timeout=300)
    assert process.returncode == status, text
    return text


def training(home: Path, server: StubServer | None, *words: str, **environment: str) -> WarmProcess:
    return WarmProcess(["train_kd.py", *words], env=surroundings(home, server, **environment))


def run_folder(home: Path) -> Path:
    [folder] = (home / "runs").glob("small-*")
    return folder


def path_of(folder: Path) -> str:
    return f"{PROJECT}/{json.loads((folder / 'summary.json').read_text())['run_id']}"


def rows_of(server: StubServer, path: str) -> list[dict]:
    """The history on the server, with this project's names, without the report, which is not a row of the file."""
    rows = [{name: value for name, value in row.items() if not name.startswith("_")} for row in server.history(path)]
    return [row for row in rows if not any(name.startswith("report/") for name in row)]


def versions(server: StubServer, name: str) -> dict[str, dict]:
    """alias -> version of an artifact; versions without an alias are listed under their number.

    An upload that was cut off stays pending at the server, which lists it nowhere.
    """
    found = {}
    for artifact in server.state["artifacts"].values():
        if artifact["collection"] == name and artifact["state"] == "COMMITTED":
            for alias in artifact["aliases"] or [f"v{artifact['version']}"]:
                found[alias] = artifact
    return found


def blob(server: StubServer, artifact: dict, name: str) -> bytes:
    return (server.backend.root / "blobs" / artifact["files"][name]["md5hex"]).read_bytes()


def printed_commands(text: str) -> list[list[str]]:
    """The commands that a script has printed for sending what W&B lacks."""
    found = re.findall(r"to send it later: ((?:wandb|python) .*)$", text, re.MULTILINE)
    programs = {"wandb": WANDB, "python": sys.executable}
    return [[programs[first], *rest] for first, *rest in map(shlex.split, found)]


def assert_complete(server: StubServer, folder: Path, *, resumed: bool = False) -> None:
    """Assert that the server has all that the run folder has; a resumed run measures its step times again."""
    path = path_of(folder)
    there, here = rows_of(server, path), read_metrics(folder / "metrics.jsonl")
    assert times_apart(there) == times_apart(here)
    assert resumed or there == here
    assert [row["_step"] for row in server.history(path)][: len(here)] == list(range(len(here)))
    stored = versions(server, f"model-{path.rpartition('/')[2]}")
    assert set(stored) == {"best", "latest"}
    assert blob(server, stored["best"], "model.safetensors") == (folder / "student" / "model.safetensors").read_bytes()
    final = folder / "checkpoints" / "latest" / "student" / "model.safetensors"
    assert blob(server, stored["latest"], "model.safetensors") == final.read_bytes()
