"""What runs store and send says nothing of keys, tokens, passwords and the home folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb_offline
import yaml
from wandb_runs import LABEL_ONLY, METHODS, ROOT, done, run_folder, serving, settings, start

from kd_core.config import Layer, digest, resolve
from kd_core.config.privacy import redacted
from kd_core.run.folder import RunFolder

KEY, TOKEN, PASSWORD = "0123456789abcdef0123456789abcdef01234567", "hf_tokentokentoken", "remotepassword"
PERSON = "someones-home"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with this project, its environment and a git remote that holds a password."""
    home = tmp_path / PERSON
    project = home / "project"
    # Caches are left out: another process may replace their files meanwhile.
    left_out = {".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__"}
    shutil.copytree(ROOT, project, ignore=lambda folder, names: left_out & set(names) | (
        {"tests", "benchmarks", "docs"} & set(names) if Path(folder) == ROOT else set()))  # fmt: skip
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (
        ["init", "-q"],
        ["remote", "add", "origin", f"https://{PASSWORD}@example.org/a/b.git"],
        [*who, "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *words], cwd=project, check=True)
    (home / "venv").symlink_to(sys.prefix)
    return home


def surroundings(home: Path, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "KD_"))}
    return {**clean, "HOME": str(home), "USER": PERSON, "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", **more}


def leaks(files: Iterator[Path]) -> list[tuple[str, str]]:
    """(file, word) for every secret word in a file."""
    words = {word: word.encode() for word in (KEY, TOKEN, PASSWORD, PERSON)}
    return [
        (str(path), word)
        for path in files
        if path.is_file() and not path.is_symlink()
        for word, sought in words.items()
        if sought in path.read_bytes()
    ]


def test_no_secret_and_no_home_is_stored_or_sent(home, tmp_path):
    """A run offline, one online that it teaches, an evaluation, the first one sent later; all in a home folder."""
    python, project = str(home / "venv" / "bin" / "python"), home / "project"
    offline, online = home / "offline", home / "online"
    words = settings(offline, "--data.train_size=1200", method=LABEL_ONLY)
    text = done(start([python, "train_kd.py", *words], surroundings(home, WANDB_MODE="offline"), cwd=project))
    teacher = run_folder(offline)
    records = [record for path in teacher.glob("wandb/offline-run-*/run-*.wandb") for record in
               wandb_offline.records(path)]  # fmt: skip
    for record in records:  # but artifacts, which are read from where they lie when the run is sent
        if record.WhichOneof("record_type") != "artifact":
            written = record.SerializeToString()
            assert not any(word.encode() in written for word in (KEY, TOKEN, PASSWORD, PERSON)), record
    assert len(records) > 5

    with serving(tmp_path) as server:
        own = server.env(home / "wandb-home") | {"WANDB_API_KEY": KEY, "WANDB_SAVE_CODE": "true"}
        del own["WANDB_CONSOLE"]  # as for everybody
        words = settings(online, "--evaluation.test_at_end=true", method=METHODS[0], teachers=[str(teacher)])
        text += done(start([python, "train_kd.py", *words], surroundings(home, **own), cwd=project))
        student = run_folder(online)
        words = ["--checkpoint", str(student)]
        text += done(start([python, "evaluate_kd.py", *words], surroundings(home, **own), cwd=project))
        done(start([python, "-m", "kd_core.tracking", str(teacher)], surroundings(home, **own), cwd=project))
        assert len(server.state["runs"]) == 3
        assert leaks((tmp_path / "server").rglob("*")) == []
        assert not list((tmp_path / "server").rglob("output.log"))  # where warnings name files
        assert not list((tmp_path / "server").rglob("*.py"))
        assert {run["host"] for run in server.state["runs"].values()} == {"unnamed"}
    # W&B's log for its developers names itself, and stays here.
    kept = (path for path in home.glob("*line/runs/**/*") if path.parent.name != "logs" and path.suffix != ".wandb")
    assert leaks(kept) == []
    assert not any(word in text for word in (KEY, TOKEN, PASSWORD))
    config = yaml.safe_load((student / "config.yaml").read_text())
    assert config["output_dir"] == "~/online/runs" and config["teachers"][0]["weights"].startswith("~/offline/runs/")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/me/runs", "~/runs"),
        ("/home/me", "~"),
        ("python x.py --a='[{weights: /home/me/w.pth}]' --b=/home/me", "python x.py --a='[{weights: ~/w.pth}]' --b=~"),
        ("cannot write to /home/me.", "cannot write to ~."),
        ("file:///home/me/x", "file://~/x"),
        ("/home/mean/x /home/me-2 /home/me.old /mnt/home/me/x", "/home/mean/x /home/me-2 /home/me.old /mnt/home/me/x"),
        ("https://me:pass@example.org/a and s3://KEY@bucket", "https://example.org/a and s3://bucket"),
        ("mail me@example.org, ENTITY/PROJECT/model:best", "mail me@example.org, ENTITY/PROJECT/model:best"),
        ({"a": ["/home/me/x", 1, None, 0.5, True]}, {"a": ["~/x", 1, None, 0.5, True]}),
    ],
)
def test_what_is_redacted(monkeypatch, given, kept):
    monkeypatch.setenv("HOME", "/home/me")
    assert redacted(given) == kept


def test_a_home_folder_at_the_root_redacts_nothing_else(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert redacted("/data/a and /") == "/data/a and /"


def test_settings_are_the_same_after_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {
        "output_dir": str(tmp_path),  # the bare ~ means null in YAML
        "data": {"source": "parquet", "path": f"{tmp_path}/data"},
        "cache": {"dir": f"{tmp_path}/cache"},
        "kd": {"type": METHODS[0]},
        "teachers": [{"weights": f"{tmp_path}/w.pth", "model": "resnet18"}, {"logits": f"{tmp_path}/l.safetensors"}],
    }
    config = resolve([Layer("test", values)]).config
    written = config.to_yaml()
    assert str(tmp_path) not in written and written.count("~") == 5
    assert resolve([Layer("read", yaml.safe_load(written))]).config == config
    assert digest(config, "data") == digest(resolve([Layer("read", yaml.safe_load(written))]).config, "data")


def test_messages_in_a_summary_are_redacted(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (folder := RunFolder(tmp_path / "run")).path.mkdir()
    folder.write_summary(error=f"{tmp_path}/x: cannot be written")
    assert folder.summary() == {"error": "~/x: cannot be written"}
