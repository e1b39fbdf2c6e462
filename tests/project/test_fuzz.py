"""Settings, command lines and files that are wrong at random: a value or one message, never anything else.

The default run tries half of the counts below; `KD_FUZZ=1 pytest tests/project/test_fuzz.py` tries all of them,
`KD_FUZZ=10 KD_FUZZ_SEED=3` ten times as many, drawn anew.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import fuzz_files
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import compare_kd
import evaluate_kd
from kd_core.config import Config, command_line, digest, own_code, parse_yaml
from kd_core.errors import UserError
from kd_core.teachers.load import training_config

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml"))
DEEPER = float(os.environ.get("KD_FUZZ", "0.5"))
SEED = int(os.environ.get("KD_FUZZ_SEED", "0"))
SECONDS = 10.0  # for one command line


def examples(count: int) -> Callable[[Any], Any]:
    """`count` times KD_FUZZ of them, the same in every run."""
    chosen = settings(
        max_examples=round(count * DEEPER), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    return lambda test: seed(SEED)(chosen(test))


wrong: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([
        None, True, False, 0, -1, 1, 2**70, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "auto", "no", "null",
        "../../etc/passwd", "~", "\x00", "a" * 5000, [], {}, [[]], {"": 1}, {"a": {"b": {}}}, "ünï", "{", "1e3", "0x10",
    ]),
    st.text(max_size=20), st.integers(), st.floats(), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)  # fmt: skip


def paths_in(values: Any, path: tuple = ()) -> list[tuple]:
    """Where something stands in nested values: every key and index."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found = []
    for key, value in items:
        found += [(*path, key), *paths_in(value, (*path, key))]
    return found


@st.composite
def changed_settings(draw: st.DrawFn) -> Any:
    """The values of a shipped file with one to four things replaced, removed, renamed or added."""
    values = yaml.safe_load(draw(st.sampled_from(SHIPPED)).read_text()) or {}
    for _ in range(draw(st.integers(1, 4))):
        places = paths_in(values)
        if not places:
            break
        *parents, last = draw(st.sampled_from(places))
        owner = values
        for key in parents:
            owner = owner[key]
        match draw(st.integers(0, 3)):
            case 0:
                owner[last] = deepcopy(draw(wrong))
            case 1:
                del owner[last]
            case 2 if isinstance(owner, dict):
                owner[draw(st.text(max_size=12))] = owner.pop(last)
            case _ if isinstance(owner, dict):
                owner[draw(st.sampled_from(["type", "kd", "teachers", "seed", "model", "x"]))] = deepcopy(draw(wrong))
    return values


def parsed(words: list[str]) -> None:
    """Read settings as the script does; what is refused is refused in words, what is accepted can be written down."""
    config = accepted(lambda: command_line.parse([*words])[1].config)
    if config is None:
        return
    written = config.to_yaml()
    assert Config.model_validate(parse_yaml(written, "written down")).to_yaml() == written
    accepted(lambda: digest(config, ""))  # reads the teachers' files
    for index, teacher in enumerate(config.teachers):
        if teacher.train:
            accepted(lambda index=index: training_config(config, index))


def accepted(action: Callable[[], Any]) -> Any:
    """What `action` gives; None where it refuses in words, quickly."""
    began = time.monotonic()
    try:
        return action()
    except UserError as error:
        assert str(error).strip() and len(str(error)) < 100_000
    except SystemExit as done:  # --help
        assert done.code == 0
    finally:
        assert time.monotonic() - began < SECONDS


@examples(1000)
@given(values=changed_settings())
def test_changed_files(values, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "changed.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    parsed(["--config", str(path)])
    parsed([f"--teachers=[{{model: cifar_resnet8, train: {path}}}]", "--kd.type=average"])


@examples(500)
@given(file=st.sampled_from(SHIPPED), number=st.integers(0, 2**32))
def test_damaged_files(file, number, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(fuzz_files.damaged(file.read_bytes(), random.Random(number)))
    parsed(["--config", str(path)])
    parsed([f"--teachers=[{{model: cifar_resnet8, train: {path}}}]", "--kd.type=average"])


KEYS = sorted(
    {
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in Config().model_dump().items()
        for key in (value if isinstance(value, dict) else [""])
    }
)
word = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(KEYS), wrong),
    st.builds("--{}={}".format, st.sampled_from(KEYS), st.text(max_size=15)),
    st.builds("{}={}".format, st.text(max_size=10), st.text(max_size=10)),
    st.builds("--{}={}".format, st.sampled_from(KEYS), wrong.map(lambda value: yaml.safe_dump(value).strip())),
    st.sampled_from(["--", "-", "--resume", "--fresh", "--no-wandb", "--check", "--config", "=", "--=", "--a..b=1"]),
    st.text(max_size=20),
)


@examples(1000)
@given(words=st.lists(word, min_size=1, max_size=4))
def test_command_lines_of_training(words):
    parsed(words)


@examples(300)
@given(
    source=st.sampled_from([[], ["--checkpoint=x"], ["--artifact=a/b/c"], ["--wandb-run-id=x"]]),
    words=st.lists(st.one_of(word, st.sampled_from(["--checkpoint", "--split", "--dump-views", "val"])), max_size=4),
)
def test_command_lines_of_evaluation(source, words):
    accepted(lambda: evaluate_kd.read_settings(*evaluate_kd.parse([*source, *words])))


@examples(300)
@given(words=st.lists(st.one_of(word, st.sampled_from(["--rows=a", "--cols=b", "--out", "--also=,"])), max_size=4))
def test_command_lines_of_comparison(words):
    accepted(lambda: own_code.run(compare_kd.parse(["runs", *words]).imports))


COUNTS = {
    "safetensors": 120, "pt": 120, "export": 120, "checkpoint": 80, "run": 80, "logits": 60, "cached_logits": 40,
    "sweep": 60, "parquet": 60, "cifar_python": 60, "imagefolder": 40, "disk": 60, "decoded": 60,
}  # fmt: skip


def test_damaged_files_of_all_kinds(tmp_path):
    """In a process of its own, which may neither die, nor hang, nor take gigabytes."""
    wanted = [f"{kind}={round(count * DEEPER)}" for kind, count in COUNTS.items()]
    assert COUNTS.keys() == fuzz_files.KINDS.keys() and sum(COUNTS.values()) >= 500
    command = [sys.executable, fuzz_files.__file__, str(tmp_path / "files"), str(SEED), *wanted]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500 * max(1, DEEPER))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "damaged files," in line] == list(COUNTS)
