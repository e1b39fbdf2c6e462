"""The command: its words, help, start-up and exit status."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sweep_sandbox import ROOT, Sandbox
from waiting import wait_for

from sweeps import run_local


def test_mistakes_on_the_command_line(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert sandbox.run(*words) == 2
        assert not sandbox.starts
        return capsys.readouterr().err

    assert "already sets x" in said("--", "--x=3")
    assert "trials 0 to 2" in said("--trial", "3")
    assert "leave out --count" in said("--trial", "0", "--count", "1")
    assert "--parallel 0" in said("--parallel", "0")
    assert "--count 0" in said("--count", "0")
    sandbox.sweep({"x": {"min": 0.0, "max": 1.0}}, method="random")
    assert "no run_cap" in said()
    assert "only the points of a grid have numbers" in said("--trial", "0")
    sandbox.sweep({"x": {"values": ["mistake", 1]}})
    assert "x: 'mistake' is no number" in said()  # the program's own message
    sandbox.sweep({"x": {"values": [1]}}, command=["no-such-program", "${args}"])
    assert "no-such-program: No such file" in said()
    sandbox.sweep({"x": {"values": [1]}}, early_terminate={"type": "hyperband", "min_iter": 9})
    assert "is 9, but training.max_epochs is 3" in said()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        run_local.main(["--help"])
    assert ending.value.code == 0
    assert "python sweeps/run_local.py SWEEP.yaml --count 30" in capsys.readouterr().out


HEAVY = {"optuna", "numpy", "scipy", "matplotlib", "rich", "torch", "timm", "wandb", "datasets", "accelerate"}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["GRID", "--cuont", "3"], 2),
        (["GRID", "--count", "0"], 2),
        (["GRID", "--", "--x=3"], 2),
        (["MISTAKE"], 2),
        (["none.yaml"], 2),
        (["GRID", "--trial", "1"], 0),  # a job array starts many of them
    ],
)
def test_answers_before_heavy_imports(words: list[str], status: int, sandbox: Sandbox) -> None:
    (sandbox.folder / "mistake.yaml").write_text("method: baies")
    names = {"GRID": str(sandbox.file), "MISTAKE": str(sandbox.folder / "mistake.yaml")}
    command = [str(ROOT / "sweeps/run_local.py"), *(names.get(word, word) for word in words)]
    code = (
        "import runpy, sys\n"
        f"sys.argv = {command!r}\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print('imported:', *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=sandbox.folder, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    [loaded] = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("imported: ")]
    assert "kd_sweeps.sweep_file" in loaded
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("form", ["array", "workers"])
def test_slurm_script(form: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms stop their trial in time, and ask to be queued again."""
    (sandbox.folder / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {sandbox.folder}/scontrol.txt\n')
    (sandbox.folder / "scontrol").chmod(0o755)
    path = os.pathsep.join([str(sandbox.folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    storage = sandbox.folder / "shared" / "study.journal"
    if form == "workers":
        environment |= {"COUNT": "2", "STORAGE": str(storage)}
    words = [str(sandbox.file), f"--output_dir={sandbox.output}", f"--gate={sandbox.folder}/gate"]
    job = subprocess.Popen(["bash", str(ROOT / "sweeps/slurm.sh"), *words], cwd=ROOT, env=environment)
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "a trial starts")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(300) == 143
    assert (sandbox.folder / "scontrol.txt").read_text() == "requeue 7_1\n"
    assert [start[4] for start in sandbox.starts] == ["2" if form == "array" else "1"]
    assert storage.exists() == (form == "workers")


@pytest.mark.slow
def test_the_real_program(tmp_path: Path) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "program": "train_kd.py",
                "method": "grid",
                "metric": {"name": "val/accuracy", "goal": "maximize"},
                "parameters": {
                    "kd.type": {"value": "baseline"},
                    "training.learning_rate": {"values": [1.0e-3, 4.0e-3]},
                },
            }
        )
    )
    words = [str(file), "--", f"--output_dir={tmp_path}/runs", "--training.max_epochs=2", "--training.warmup_epochs=0",
             "--training.compare_with_baseline=false", "--evaluation.report=false", "--teachers=[]"]  # fmt: skip
    command = [sys.executable, "sweeps/run_local.py", *words]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    results = tmp_path / "runs/sweeps/digits"
    with open(results / "trials.csv") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 2 and all(0 < float(row["val/accuracy"]) <= 1 for row in rows)
    (results / "study.journal").unlink()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("already finished: ") == 2
    apart = [word.replace("/runs", "/apart") for word in command]
    apart.insert(3, "--separate")
    separate = subprocess.run(apart, cwd=ROOT, capture_output=True, text=True)
    assert separate.returncode == 0 and "importing once" in first.stdout and "importing once" not in separate.stdout
    trained = [
        {
            yaml.safe_load(file.read_text())["training"]["learning_rate"]:
                (file.parent / "student" / "model.safetensors").read_bytes()
            for file in (tmp_path / folder).glob("*-*/config.yaml")
        }
        for folder in ("runs", "apart")
    ]  # fmt: skip
    assert trained[0] == trained[1] and len(trained[0]) == 2
