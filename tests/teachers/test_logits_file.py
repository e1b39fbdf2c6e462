"""Files of logits as teachers: what they teach is what their network would, and nothing wrong gets in."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import evaluate_kd
import kd_methods
import train_kd
from kd_core import config as configuration
from kd_core.config import Config, DataConfig, command_line
from kd_core.data.dataset import Data, load_data
from kd_core.errors import UserError
from kd_core.export.dump_logits import dump_logits
from kd_core.models import build as models
from kd_core.models import network as networks
from kd_core.models.predict import Predictor
from kd_core.run.folder import read_metrics
from kd_core.teachers import logits as teacher_logits
from kd_core.teachers import logits_file
from kd_core.teachers.logits_file import LogitsFile, write_logits

ROOT = Path(__file__).resolve().parents[2]
COMMON = [
    "--data.train_size=400", "--data.batch_size=40", "--no-wandb", "--training.compare_with_baseline=false",
    "--evaluation.report=false", "--fresh",
    "--model={name: cifar_resnet8}",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A trained teacher in t/, and its logits in clean.safetensors and views.safetensors."""
    home = tmp_path_factory.mktemp("logits")
    train(home, "t", "--teachers=[]", f"--kd.type={kd_methods.LABEL_ONLY}", "--training.max_epochs=3")
    teacher = str(folder(home, "t"))
    dump = ["--checkpoint", teacher, "--no-wandb", "--dump-logits"]
    evaluate_kd.main([*dump, str(home / "clean.safetensors")])
    evaluate_kd.main([*dump, str(home / "views.safetensors"), "--dump-views", "3"])
    return home


@pytest.fixture(scope="module")
def data(home) -> Data:
    return load_data(DataConfig(source="digits"), model_sizes=[32], cache_dir=home / "cache")


def folder(home: Path, name: str) -> Path:
    [found] = home.glob(f"{name}/run-????????")
    return found


def train(home: Path, name: str, *more: str) -> dict[str, torch.Tensor]:
    """The final student's weights."""
    where = [f"--output_dir={home / name}", f"--cache.dir={home / 'cache'}", "--name=run", "--training.max_epochs=2"]
    train_kd.main([*COMMON, *where, *more])
    return models.load_export(folder(home, name) / "checkpoints" / "latest" / "student").model.state_dict()


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_dumped_teacher_equals_its_network(home, capsys):
    test = ["--evaluation.test_at_end=true", "--kd.type=average"]
    network = train(home, "a", f"--teachers=[{{weights: {folder(home, 't')}, view: clean}}]", *test)
    capsys.readouterr()
    file = train(home, "b", f"--teachers=[{{logits: {home / 'clean.safetensors'}}}]", *test)
    assert same(network, file)
    text = capsys.readouterr().out
    assert text.count("teacher 0 clean.safetensors: accuracy") == 1 and "clean view" in text
    [line] = [line for line in text.splitlines() if line.startswith("teacher 0 (clean.safetensors)")]
    assert line.endswith(" -")  # nobody knows how many parameters


def test_dumped_views_equal_the_cache_in_mode_fixed(home):
    fixed = ["--cache.mode=fixed", "--cache.views=3", "--kd.type=average"]
    network = train(home, "c", f"--teachers=[{{weights: {folder(home, 't')}}}]", *fixed)
    file = train(home, "d", f"--teachers=[{{logits: {home / 'views.safetensors'}}}]", *fixed)
    assert same(network, file)


def test_a_file_by_another_framework_serves_as_a_teacher(home, data):
    """NumPy alone; with views but without clean logits, which their ensemble stands for."""
    rows, draw = len(data.train.labels), np.random.default_rng(0)
    labels = np.eye(10, dtype=np.float32)[data.train.labels.numpy()]
    views = 3 * labels[:, None] + draw.normal(size=(rows, 2, 10)).astype(np.float32)
    about = {"mine": data.train.fingerprint, "crop_padding": "2", "flip": "false"}
    safetensors.numpy.save_file({"mine": views}, home / "numpy.safetensors", metadata=about)
    fixed = ["--cache.mode=fixed", "--cache.views=2", "--kd.type=average"]
    train(home, "e", f"--teachers=[{{logits: {home / 'numpy.safetensors'}}}]", *fixed)


def test_without_test_logits_the_student_is_tested_alone(home, capsys):
    """The run is not lost after its last epoch."""
    tensors = load_file(home / "clean.safetensors")
    with safe_open(home / "clean.safetensors", "pt") as file:
        about = file.metadata()
    test = tensors.pop("test")
    write_logits(home / "untested.safetensors", tensors, about)
    more = ["--evaluation.test_at_end=true", "--kd.type=average"]
    train(home, "untested", f"--teachers=[{{logits: {home / 'untested.safetensors'}}}]", *more)
    assert "the student is tested without its teachers beside it: teachers[0].logits: " in capsys.readouterr().out
    row = read_metrics(folder(home, "untested") / "metrics.jsonl")[-1]
    assert {"test/accuracy", "test/loss_ce"} < set(row) and "test/loss_total" not in row and len(test) == 270


def test_the_docs_example_runs_and_its_file_serves_as_a_teacher(home, monkeypatch, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "logits.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_CACHE_DIR", str(home / "cache"))
    exec(compile(code, "docs/logits.md", "exec"), {})
    test = ["--evaluation.test_at_end=true", "--kd.type=average"]
    train(home, "example", f"--teachers=[{{logits: {tmp_path / 'mine.safetensors'}}}]", *test)
    [teacher] = json.loads((folder(home, "example") / "summary.json").read_text())["teachers"]
    assert teacher["val_accuracy"] > 0.8


def test_the_file_holds_every_image_of_the_source_once(home, data):
    tensors = load_file(home / "views.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "train": (len(data.train.labels), 10),
        "train_views": (len(data.train.labels), 3, 10),
        "test": (270, 10),
    }
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    file = LogitsFile(home / "views.safetensors", "here", 10)
    test = data.test()
    assert test is not None and file.views(data.train) == 3 and file.views(test) == 0
    correct = (file.clean(test).argmax(1) == test.labels).float().mean()
    evaluate_kd.main(["--checkpoint", str(folder(home, "t")), "--split", "test", "--no-wandb"])
    found = json.loads((folder(home, "t") / "evaluation-test.json").read_text())
    assert found["accuracy"] == pytest.approx(float(correct), abs=1e-6)


@pytest.mark.parametrize("here", [True, False], ids=["here", "in another process"])
def test_a_test_split_that_cannot_be_read_is_left_out_of_the_file(home, data, here, tmp_path, capsys, monkeypatch):
    """Training with such data works, so its student can teach."""

    def unreadable():
        raise UserError("row 0 has no label (-1)")

    if here:
        data = replace(data, _open_test=unreadable, _test=[])
    else:
        monkeypatch.setattr(teacher_logits, "gather_object", lambda own: [*own, "row 0 has no label (-1)"])
    path, config = tmp_path / "a.safetensors", Config.model_validate({"model": {"name": "cifar_resnet8"}})
    dump_logits(path, 0, data, networks.build(config, data), Predictor(Accelerator(cpu=True), config))
    assert set(load_file(path)) == {"train"}
    assert "has no logits of the test split, which cannot be read: row 0 has no label (-1)" in capsys.readouterr().out


def write(home: Path, data: Data, tensor: torch.Tensor | None = None, **about: str) -> Path:
    path = home / "wrong.safetensors"
    tensor = torch.zeros(len(data.train.labels), 10) if tensor is None else tensor
    save_file({"train": tensor}, path, metadata={"train": data.train.fingerprint, **about})
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: {"tensor": torch.zeros(1527, 9)}, r"'train' is torch.float32 of shape \[1527, 9\]; logits are"),
        (lambda d: {"tensor": torch.zeros(1527, 10).long()}, "'train' is torch.int64"),
        (lambda d: {"tensor": torch.zeros(5, 10)}, "'train' has 5 rows, the images are 1,527"),
        (lambda d: {"tensor": torch.full((1527, 10), torch.nan)}, "not finite, or too large for fp16"),
        (lambda d: {"tensor": torch.full((1527, 10), 1e5)}, "not finite, or too large for fp16"),
        (lambda d: {"train": "other"}, "has no logits of split 'train', whose images have the fingerprint [0-9a-f]+; "
         "it has 'train' for other"),
    ],
)  # fmt: skip
def test_files_that_do_not_match_are_one_message(home, data, make, message):
    assert len(data.train.labels) == 1527
    path = write(home, data, **make(data))
    with pytest.raises(UserError, match=rf"teachers\[0\].logits: {path}: .*{message}"):
        train(home, "f", f"--teachers=[{{logits: {path}}}]", "--kd.type=average")
    assert not (home / "f").exists()


@pytest.mark.parametrize(
    ("store_size", "message"),
    [("256", "stored at 256 pixels, here they are stored at 32: give --data.store_size=256"),
     ("32", "The metadata must say the fingerprint"), ("²", "The metadata must say")],
)  # fmt: skip
def test_photos_that_were_stored_at_another_size_are_refused_with_that_size(home, data, store_size, message):
    path = write(home, data, train="other", store_size=store_size)
    assert data.image_size == 32
    with pytest.raises(UserError, match=message):
        LogitsFile(path, "teachers[0].logits", 10).require(data.train)


@pytest.mark.parametrize(
    ("teacher", "more", "message"),
    [
        ("views", [], r"has logits of 3 fixed views .*--cache.mode=fixed --cache.views=3"),
        ("views", ["--cache.mode=fixed", "--cache.views=4"], r"--cache.mode=fixed --cache.views=3"),
        ("views", ["--cache.mode=fixed", "--cache.views=3", "--data.crop_padding=1"],
         r"made with data.crop_padding=2 and data.flip=false, here they are 1 and false"),
    ],
)  # fmt: skip
def test_views_that_the_student_will_not_see_are_refused(home, teacher, more, message, monkeypatch):
    monkeypatch.setattr(train_kd, "run", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(UserError, match=message):
        train(home, "g", f"--teachers=[{{logits: {home / teacher}.safetensors}}]", "--kd.type=average", *more)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teachers=[{logits: nowhere.safetensors}]"], "no such file; evaluate_kd.py --dump-logits writes one"),
        (["--teachers=[{logits: README.md}]"], "damaged, or not a safetensors file"),
        (["--teachers=[{logits: a.safetensors, view: clean}]"], "remove view"),
        (["--teachers=[{logits: a.safetensors, weights: b}]"], "exactly one of 'weights', 'train' and 'logits'"),
    ],
)
def test_mistakes_in_the_settings(home, words, message):
    with pytest.raises(UserError, match=message):
        train(home, "h", "--kd.type=average", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dump-logits", "a.npy"], "a .safetensors file is needed"),
        (["--dump-logits", "a.safetensors", "--dump-views", "x"], "--dump-views: x"),
        (["--dump-views", "3"], "beside --dump-logits"),
        (["--dump-logits", "/proc/nowhere/a.safetensors"], "cannot write"),
    ],
)
def test_mistakes_in_the_command(home, words, message):
    with pytest.raises(UserError, match=message):
        evaluate_kd.main(["--checkpoint", str(folder(home, "t")), "--no-wandb", *words])


def test_equal_logits_written_twice_are_the_same_file_and_so_the_same_run(tmp_path):
    """safetensors alone writes metadata in random order; of twelve names twice the same has a chance of 1 in 12!."""
    names = [f"é{number}" for number in range(12)]
    tensors = {name: torch.arange(6.0).view(2, 3) + number for number, name in enumerate(names)}
    about = {name: f'"\\ü\n{name}' for name in names} | {"flip": "true"}
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        write_logits(file, tensors, about)
    assert files[0].read_bytes() == files[1].read_bytes()
    with safe_open(files[0], framework="pt") as kept:
        assert kept.metadata() == about
        assert all(torch.equal(kept.get_tensor(name), tensors[name].half()) for name in names)


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path, monkeypatch):
    def fill(tensors, file, metadata):
        file.write_bytes(b"part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(logits_file, "save_file", fill)
    with pytest.raises(UserError, match="a.safetensors: cannot be written: .*No space left on device"):
        write_logits(tmp_path / "a.safetensors", {"train": torch.zeros(2, 3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_another_content_is_another_run_wherever_the_file_lies(home, tmp_path):
    def digest(name: str) -> str:
        words = ["--config", "configs/quickstart.yaml", f"--teachers=[{{logits: {home / name}}}]"]
        return configuration.digest(command_line.parse(words)[1].config, "data")

    copy = tmp_path / "copy.safetensors"
    shutil.copy(home / "clean.safetensors", copy)
    assert digest(str(copy)) == digest("clean.safetensors")
    shutil.copy(home / "views.safetensors", copy)
    assert digest(str(copy)) == digest("views.safetensors") != digest("clean.safetensors")
