"""Hints repeat the user's own command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd_core.config import command_line

PYTHON = os.path.basename(sys.executable)


@pytest.fixture
def words(monkeypatch):
    for name in (*command_line.LAUNCHED, "KD_TRIAL", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: ("train_kd.py", list(arguments))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--a.b=1", "--kd.type=x", "kd.gamma=2", "--kd.alpha", "0.5", "--c"], ["--a.b=1", "--c"]),
        (["--kd={'type': 'x'}", "--kdx=1"], ["--kdx=1"]),
        (["--kd.use_soft_loss", "--x=1"], ["--x=1"]),
        (["--a", "kd", "--b=kd.type"], ["--a", "kd", "--b=kd.type"]),
        (["--kd.type"], []),
    ],
)
def test_settings_are_taken_out_in_all_their_forms(given, kept):
    assert command_line.without(given, r"kd(\..*)?") == kept


def test_the_command_that_continues(words, monkeypatch):
    same = "the same command continues where it stopped: python train_kd.py --config 'my own.yaml' '--data.path=/a b'"
    assert command_line.to_go_on(*words("--config", "my own.yaml", "--data.path=/a b")) == same
    fresh = words("--fresh", "--resume", "runs/x", "--training.seed=3")  # again with --fresh it would begin anew
    assert command_line.to_go_on(*fresh) == (
        "to go on where it stopped: python train_kd.py --resume runs/x --training.seed=3"
    )
    for never in (["--resume", "never"], ["--resume=never"]):
        said = command_line.to_go_on(*words(*never, "--training.seed=3"))
        assert said == "to go on where it stopped: python train_kd.py --training.seed=3"
    monkeypatch.setenv("KD_TRIAL", "abcdefgh")
    assert command_line.to_go_on(*fresh) == "the same command continues where it stopped"


def test_the_command_with_another_method(words):
    own = words(
        "--data.path", "my photos", "--kd.type=dynamic", "--kd.gamma=3", "--fresh", "--resume=never", "--no-wandb"
    )
    assert command_line.another_method(*own, "dynamic") == (
        "python train_kd.py --data.path 'my photos' --no-wandb --kd.type=confidence"
    )
    assert command_line.another_method(*own, "confidence").endswith(" --kd.type=dynamic")


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from kd_core.config import command_line
print(command_line.own_command('train.py', sys.argv[1:]))
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-u', *sys.argv[4:]]).returncode)"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the words of the process before")
@pytest.mark.parametrize("name", ["accelerate", "torchrun", "other.py"])
def test_a_launcher_is_part_of_the_command(tmp_path, name):
    root = str(Path(__file__).resolve().parents[2])
    (tmp_path / "train.py").write_text(SCRIPT.format(root=root))
    (tmp_path / name).write_text(LAUNCHER)
    arguments = ["launch", "--num_processes", "2", "train.py", "--x=a b", "--config", "y"]
    shown = {}
    for launched in ("1", ""):
        environment = {key: value for key, value in os.environ.items() if key not in command_line.LAUNCHED}
        environment |= {"WORLD_SIZE": "2"} if launched else {}
        done = subprocess.run(
            [sys.executable, str(tmp_path / name), *arguments], cwd=tmp_path, env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        shown[launched] = done.stdout.strip()
    whole = [name, *arguments] if name != "other.py" else [PYTHON, str(tmp_path / name), *arguments]
    assert shown == {"1": str(whole), "": str(["python", "train.py", "--x=a b", "--config", "y"])}
