"""`--help` and mistakes in switches are answered before anything heavy is imported, and a closed pipe ends quietly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd_core.run.script import run_script

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "timm", "datasets", "accelerate", "scipy", "matplotlib", "wandb", "huggingface_hub")
# Runs a script as `python SCRIPT ...` does, and prints which of HEAVY it has imported when it ends.
RUN = f"""
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)
"""
SCRIPTS = ("train_kd.py", "evaluate_kd.py", "compare_kd.py")


def started(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", RUN, *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script):
    done = started(script, "--help")
    assert done.returncode == 0 and done.stderr == "imported:\n"
    assert "exit status: 0 done, 2 a mistake" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_kd.py", "--training.max_epoch=3"], "train_kd.py: command line: training.max_epoch: unknown key"),
        (["train_kd.py", "--config", "nowhere.yaml"], "train_kd.py: --config: no such file: nowhere.yaml"),
        (["train_kd.py", "--seeds=0,x"], "train_kd.py: --seeds: is '0,x'"),
        (["evaluate_kd.py"], "evaluate_kd.py: say what to evaluate"),
        (["evaluate_kd.py", "--checkpoint", "x", "--split", "train"], "evaluate_kd.py: argument --split: invalid"),
        (["evaluate_kd.py", "--checkpoint", "x", "--export", "tflite"], "evaluate_kd.py: --export: unknown kind"),
        (["evaluate_kd.py", "--checkpoint", "x", "--top", "3"], "evaluate_kd.py: --top: belongs to --images"),
        (["compare_kd.py"], "compare_kd.py: say what to compare"),
        (["compare_kd.py", "runs", "--rows", "kd.type"], "compare_kd.py: --rows and --cols: one needs the other"),
        (["compare_kd.py", "runs", "--confidence", "high"], "compare_kd.py: --confidence: is 'high'"),
    ],
)
def test_mistakes_in_switches_import_nothing_heavy(words, message):
    done = started(*words)
    assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.endswith("\nimported:\n")
    assert "Traceback" not in done.stderr and not done.stdout


def test_printing_settings_imports_nothing_heavy():
    done = started("train_kd.py", "--print-config", "--kd.temperature=8")
    assert done.returncode == 0 and done.stderr == "imported:\n"
    assert "temperature: 8.0" in done.stdout and "source: digits" in done.stdout


def test_a_comparison_imports_plots_and_pages_only_for_files():
    code = "import sys, compare_kd; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def written_to_a_closed_pipe(*command: str) -> subprocess.CompletedProcess[str]:
    """What happens after `command | head` when head has read enough."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run([sys.executable, *command], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_into_a_closed_pipe_ends_quietly(script):
    done = written_to_a_closed_pipe(script, "--help")
    assert (done.returncode, done.stderr) == (1, "")


def test_results_into_a_closed_pipe_end_quietly():
    code = "from kd_core.run.script import run_script; run_script(lambda words: print('results'), 'script.py')"
    done = written_to_a_closed_pipe("-c", code)
    assert (done.returncode, done.stderr) == (1, "")


def test_another_broken_pipe_is_a_failure(monkeypatch, capsys):
    """Such as a connection to a server: stdout can still be written."""

    def main(words: list[str]) -> None:
        raise BrokenPipeError("a server is gone")

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as end:
        run_script(main, "script.py")
    text = capsys.readouterr().err
    assert end.value.code == 1 and "BrokenPipeError: a server is gone" in text and "Please report it" in text
