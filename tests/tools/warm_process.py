"""Run the scripts in processes forked from one that has already imported torch, timm, W&B and this project.

Importing them takes seconds per process and is not what most tests of real processes are about: signals, exit statuses,
locks, several processes of one run.  Python's own fork server (multiprocessing, start method "forkserver") imports them
once per pytest worker.  A child then gets its environment, folder, command line and output, and runs the script as
`python SCRIPT` does.  Tests of imports, launchers and Python's own startup use `subprocess`.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from waiting import free_port

ROOT = Path(__file__).resolve().parents[2]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "torch", "timm", "torchvision", "accelerate", "datasets", "scipy.stats", "sklearn.datasets", "wandb", "optuna",
        "train_kd", "kd_core.report.run_page", "kd_core.comparison.tables",
    ]
)  # fmt: skip


def run(words: list[str], environment: dict[str, str], cwd: str, output: Connection) -> None:
    """In the child: what `python *words` does, with its output sent to `output`."""
    gc.freeze()  # what was imported is not looked through by every collection of garbage, and stays shared
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    random.seed()  # every child would draw what the others draw
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, cwd)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # W&B says goodbye there; multiprocessing leaves them out


class WarmProcess:
    """A running script, with what tests use of `subprocess.Popen`; its output is stdout and stderr together."""

    def __init__(self, words: list[str], *, env: dict[str, str] | None = None, cwd: Path = ROOT):
        """`words`: what follows `python` on a command line, a script or `-m MODULE` and its arguments."""
        reading, writing = _server.Pipe(duplex=False)
        arguments = (words, dict(os.environ if env is None else env), str(cwd), writing)
        self._process = _server.Process(target=run, args=arguments, daemon=True)
        self._process.start()
        writing.close()
        self._text: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(reading,), daemon=True)
        self._reader.start()
        self.args = words

    def _read(self, pipe: Connection) -> None:
        with pipe, open(pipe.fileno(), encoding="utf-8", errors="replace", closefd=False) as output:
            for line in output:
                self._text.append(line)

    @property
    def printed(self) -> str:
        """What it has printed so far, in whole lines."""
        return "".join(self._text)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Everything it printed, after it and all processes that share its output have ended."""
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self._process.join(timeout)
        return self.printed, None

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_ranks(processes: int, *words: str, timeout: float = 300, **environment: str) -> list[tuple[int, str]]:
    """Run a script and its words in several processes as torchrun starts them; status and output of each."""
    port, running = str(free_port()), []
    for rank in map(str, range(processes)):
        own = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        own = {**os.environ, **environment, **(own if processes > 1 else {})}
        running.append(WarmProcess(list(words), env=own))
    texts = [process.communicate(timeout=timeout)[0] for process in running]
    return [(process.returncode, text) for process, text in zip(running, texts, strict=True)]


def ranks(processes: int, script: str, *words: str) -> str:
    """What `run_ranks` printed; all processes must end well."""
    ends = run_ranks(processes, script, *words)
    assert [status for status, _ in ends] == [0] * processes, "\n".join(text for _, text in ends)
    return "".join(text for _, text in ends)
