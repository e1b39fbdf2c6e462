"""A user's own file: that of docs/own_code.md from training to comparison, and all that such a file can get wrong."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from timm.models import _registry

import compare_kd
import evaluate_kd
import kd_methods
import train_kd
from kd_core import config as configuration
from kd_core.config import DataConfig, command_line, identity_of, own_code, registry, schema
from kd_core.data import sources
from kd_core.data.dataset import Split
from kd_core.errors import UserError
from kd_core.loop.signals import Stopped
from kd_core.models import build as models
from kd_core.models import interface
from kd_core.models.layer_features import build_method
from kd_core.run.folder import read_metrics
from kd_core.run.script import run_script
from kd_core.teachers import load as teachers
from kd_methods import logit_losses

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own_code.md").read_text()
MINE, SETTINGS, TEACHER = (text for _, text in re.findall(r"```(python|yaml)\n(.*?)```", PAGE, flags=re.DOTALL))


def forget() -> None:
    """Undo all that files have added, as in a fresh process."""
    for file in own_code.files():
        for kind, name in file.provides:
            if kind == own_code.NETWORK:
                _registry._clear_model_entries(name)
                del _registry._model_entrypoints[name]
    for names in (own_code._files, own_code._paths, kd_methods._added, logit_losses._added, registry.added_sources):
        names.clear()
    schema._kd_settings.cache_clear()  # it is known by the methods' names, which another file may add again


@contextmanager
def in_a_fresh_process() -> Iterator[None]:
    """Within the block nothing was added; afterwards nothing is, either."""
    forget()
    try:
        yield
    finally:
        forget()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with in_a_fresh_process():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with the page's files and settings that are quicker and tell less."""
    home = tmp_path_factory.mktemp("home")
    (home / "mine.py").write_text(MINE)
    (home / "teacher.yaml").write_text(TEACHER)
    settings = yaml.safe_load(SETTINGS)
    settings["teachers"][0]["train"] = str(home / "teacher.yaml")
    settings |= {"output_dir": str(home / "runs"), "cache": {"dir": str(home / "cache")}}
    settings |= {"evaluation": {"report": False}, "wandb": {"mode": "disabled"}}
    (home / "mine.yaml").write_text(yaml.safe_dump(settings))
    (home / "plain.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if k != "import"}))
    return home


def runs(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"{pattern}/summary.json"))


@pytest.fixture(scope="module")
def trained(home) -> Path:
    """The run folder of the page's student."""
    with in_a_fresh_process():
        train_kd.main(["--config", str(home / "mine.yaml")])
    (folder,) = runs(home / "runs", "blend-*")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "student" / "model.safetensors")


# --------------------------------------------------------------------------------------------- the page's own file


def test_the_page_shows_a_file_of_forty_lines_that_adds_one_of_each():
    assert len([line for line in MINE.splitlines() if line.strip()]) <= 40


def test_a_network_a_method_and_a_data_source_are_trained(home, trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["status"], summary["student_model"], summary["kd_type"]) == ("finished", "plain_net", "blend")
    assert summary["teachers"][0]["name"] == "plain_net"
    assert (trained / "imports" / "mine.py").read_text() == MINE
    (teacher,) = runs(home / "runs", "teacher-*")
    assert (teacher / "imports" / "mine.py").read_text() == MINE  # its network and its images come from there
    assert yaml.safe_load((trained / "config.yaml").read_text())["import"] == [str(home / "mine.py")]
    (student,) = {tuple(tensor.shape) for name, tensor in weights(trained).items() if name == "5.weight"}
    assert student == (4, 128)


def test_it_is_resumed_bit_for_bit(home, trained):
    words = ["--config", str(home / "mine.yaml"), f"--output_dir={home / 'resumed'}"]
    for folder in runs(home / "runs", "teacher-*"):
        shutil.copytree(folder, home / "resumed" / folder.name)
    rows = train_kd.epochs_of(words)
    next(rows)
    with pytest.raises(Stopped):
        rows.throw(Stopped(signal.SIGTERM))
    (folder,) = runs(home / "resumed", "blend-*")
    assert json.loads((folder / "summary.json").read_text())["status"] == "preempted"
    forget()
    (home / "elsewhere").mkdir()
    shutil.copy(home / "mine.py", home / "elsewhere" / "same.py")  # its content counts, not its name
    train_kd.main(
        ["--import", str(home / "elsewhere" / "same.py"), "--config", str(home / "plain.yaml"), *words[2:],
         "--resume", str(folder)]
    )  # fmt: skip
    assert runs(home / "resumed", "blend-*") == [folder]
    one, other = weights(trained), weights(folder)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    times = re.compile("perf/|step_time")
    rows = [
        [{key: value for key, value in row.items() if not times.search(key)} for row in read_metrics(path)]
        for path in (trained / "metrics.jsonl", folder / "metrics.jsonl")
    ]
    assert rows[0] == rows[1]


def test_it_is_evaluated(home, trained, capsys):
    evaluate_kd.main(["--import", str(trained / "imports" / "mine.py"), "--checkpoint", str(trained)])
    found = json.loads((trained / "evaluation-val.json").read_text())
    assert found["accuracy"] == json.loads((trained / "summary.json").read_text())["val_accuracy"]
    assert "teachers are not measured" not in capsys.readouterr().out and found["measured_teachers"]


def test_it_is_compared_with_other_methods(home, trained, capsys):
    train_kd.main(["--config", str(home / "mine.yaml"), "--kd.type=average"])
    capsys.readouterr()
    compare_kd.main([str(home / "runs"), "--import", str(home / "mine.py")])
    (table,) = re.findall(r"^plain_net -> plain_net\n(.*?)\n\n", capsys.readouterr().out, flags=re.DOTALL | re.M)
    assert {line.split()[0] for line in table.splitlines()[2:]} >= {"average", "blend"}  # in one set


def test_it_runs_under_a_sweeps_trial(home, trained):
    sweep = home / "sweep.yaml"
    parameters = {"kd.share": {"values": [0.25]}, "training.max_epochs": {"value": 1}}
    metric = {"name": "val/accuracy", "goal": "maximize"}
    command = ["${env}", "${interpreter}", str(ROOT / "train_kd.py"), "${args}"]
    content = {"program": "train_kd.py", "method": "grid", "metric": metric, "parameters": parameters}
    sweep.write_text(yaml.safe_dump({**content, "command": command}))
    words = ["--import", "mine.py", "--config", "plain.yaml", "--evaluation.report=false"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "sweeps" / "run_local.py"), str(sweep), "--", *words],
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    settings = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in runs(home / "runs", "blend-*")]
    assert 0.25 in [each["kd"]["share"] for each in settings]


def test_exports_that_need_more_than_a_plain_network_are_refused(home, trained):
    words = ["--import", str(home / "mine.py"), "--checkpoint", str(trained), f"--out={home / 'export'}"]
    with pytest.raises(UserError, match=r"plain_net \(mine.py\) lacks default_cfgs, num_features, reset_classifier"):
        evaluate_kd.main([*words, "--export", "timm"])
    assert not (home / "export").exists()
    evaluate_kd.main([*words, "--export", "program"])
    assert (home / "export" / "model.pt2").is_file()


# --------------------------------------------------------------------------------- code runs only if it is named


@pytest.fixture
def hostile(trained, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A run folder whose code leaves a mark, and the mark."""
    monkeypatch.setenv("WANDB_MODE", "disabled")  # a run that is refused would leave W&B's service starting
    mark, run = tmp_path / "mark", tmp_path / "received" / trained.name
    shutil.copytree(trained, run)
    code = f"open({str(mark)!r}, 'w')\n{MINE}"
    for path in (run / "imports" / "mine.py", run / "mine.py", run / "student" / "mine.py"):
        path.write_text(code)
    for path in run.rglob("config.yaml"):
        settings = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(settings | {"import": ["mine.py", str(run / "imports" / "mine.py")]}))
    monkeypatch.chdir(tmp_path)
    return run, mark


@pytest.mark.parametrize(
    "words",
    [
        "evaluate_kd --checkpoint RUN",
        "evaluate_kd --checkpoint RUN --images RUN",
        "evaluate_kd --checkpoint RUN --export program",
        "evaluate_kd --checkpoint RUN/student",
        "evaluate_kd --checkpoint RUN/student --config RUN/student/config.yaml",
        "evaluate_kd --checkpoint RUN/checkpoints/best/student",
        "compare_kd RUN",
        "train_kd --config RUN/config.yaml",
        "train_kd --config RUN/student/config.yaml",
        "train_kd --resume RUN",
        "train_kd --kd.type=average --teachers=[{\"weights\":\"RUN\"}]",
    ],
)
def test_a_run_folders_code_is_not_run_and_the_option_is_named(words, hostile):
    run, mark = hostile
    script, *given = words.split()
    main = {"evaluate_kd": evaluate_kd, "compare_kd": compare_kd, "train_kd": train_kd}[script].main
    option = f"--import {Path('received') / run.name / 'imports' / 'mine.py'}"
    with pytest.raises(UserError, match=re.escape(option)):
        main([*(word.replace("RUN", str(run)) for word in given)])
    assert not mark.exists() and not own_code.files()


def test_an_artifacts_code_is_not_run(hostile, monkeypatch):
    run, mark = hostile
    monkeypatch.setattr(evaluate_kd.artifacts, "download", lambda *_: run / "student")
    with pytest.raises(UserError, match="add: --import"):
        evaluate_kd.main(["--artifact", "a/b/c:best"])
    assert not mark.exists()


def test_what_the_command_names_is_run(hostile):
    run, mark = hostile
    words = ["--checkpoint", str(run), "--import", str(run / "imports" / "mine.py")]
    evaluate_kd.read_settings(*evaluate_kd.parse(words))
    assert mark.exists()


def test_a_change_of_the_runs_code_is_reported(home, trained, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE + "# another\n")
    evaluate_kd.main(["--import", str(tmp_path / "mine.py"), "--checkpoint", str(trained), "--no-teachers"])
    assert "note: --import mine.py is not what the run was trained with" in capsys.readouterr().out
    forget()
    words = ["--import", str(tmp_path / "mine.py"), "--config", str(home / "plain.yaml"), "--resume", str(trained)]
    with pytest.raises(UserError, match="the files named by --import: the run was trained with the copies in"):
        train_kd.main(words)


# ------------------------------------------------------------------------------------------- settings and identity


def resolved(*words: str) -> configuration.Config:
    return command_line.parse(list(words))[1].config


def test_a_configuration_names_files_beside_it(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.py").write_text("x = 1\n")
    (tmp_path / "two.py").write_text("x = 2\n")
    (tmp_path / "sub" / "a.yaml").write_text("import: one.py\n")
    monkeypatch.chdir(tmp_path)
    config = resolved("--config", "sub/a.yaml", "--import", "two.py")
    assert config.imports == [str(tmp_path / "two.py"), str(tmp_path / "sub" / "one.py")]
    (tmp_path / "sub" / "b.yaml").write_text("import: [3]\n")
    with pytest.raises(UserError, match=r"sub/b.yaml: import: is \[3\], expected a list of .py files"):
        resolved("--config", "sub/b.yaml")


def test_content_is_part_of_the_identity_and_its_place_is_not(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, text in zip(folders, ("x = 1\n", "x = 1\n", "x = 2\n"), strict=True):
        folder.mkdir()
        (folder / "code.py").write_text(text)
    one, same, other = (identity_of(resolved("--import", str(folder / "code.py")), "data") for folder in folders)
    assert one == same != other
    without = identity_of(resolved(), "data")
    assert "import" not in without and {key: value for key, value in one.items() if key != "import"} == without
    forget()
    as_named = resolved("--import", str(folders[0] / "code.py"))
    (folders[0] / "code.py").write_text("x = 3\n")  # what was run is what identifies the run
    assert identity_of(as_named, "data") == one


METHOD = """
import sys
from typing import Literal
import kd_methods
class Config(kd_methods.LogitConfig):
    type: Literal["own_method"] = "own_method"
class Method(kd_methods.KDMethod):
    def compute(self, student, teachers, labels, progress):
        {compute}
    def describe(self, num_teachers):
        return "loss = none"
kd_methods.add("own_method", sys.modules[__name__])
"""
GOOD = """hard = self.label_loss(student.logits, labels).mean()
        weights = hard.new_full((len(teachers.logits),), 1.0)
        return hard, kd_methods.common_metrics(hard, hard, hard, weights)"""
TAUGHT = ["--kd.type=own_method", "--teachers=[{model: cifar_resnet8, train: configs/teachers/digits.yaml}]"]


def imported(tmp_path: Path, code: str, name: str = "own.py") -> str:
    (tmp_path / name).write_text(code)
    return str(tmp_path / name)


def test_a_file_of_methods_alone_sets_only_methods_apart(tmp_path):
    file = imported(tmp_path, METHOD.format(compute=GOOD))
    own = resolved("--import", file, *TAUGHT)
    assert "import" not in identity_of(own, "data") and len(identity_of(own, "data")["kd"]["code"]) == 1
    assert teachers.training_config(own, 0).imports == []  # no teacher is trained anew for it
    alone = ["--teachers=[]", f"--kd.type={kd_methods.LABEL_ONLY}"]  # nor the student alone, which cannot use it
    assert identity_of(resolved("--import", file, *alone), "data") == identity_of(resolved(*alone), "data")


def test_numpys_labels_of_a_source_are_numbers():
    """As NumPy makes them: an array, or a list of its numbers."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for number, labels in enumerate((np.arange(12) % 3, list(np.arange(12) % 3))):

        def open_split(name, labels=labels):
            return sources.RawSplit(name, name, lambda: (labels, None), lambda i, j: list(pixels[i:j]), [])

        sources.add(f"numbers{number}", lambda config: sources.Source("numbers", ["train"], open_split))
        raw = sources.open_source(DataConfig.model_validate({"source": f"numbers{number}"})).open("train")
        assert raw.labels() == ([0, 1, 2] * 4, None)


def test_wandbs_echo_of_what_was_recorded_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_TRIAL", "abcdefgh")
    file = imported(tmp_path, "x = 5\n")
    echo = ["--import=['/gone/own.py']", "--import=[]", "--data_fingerprint=0"]
    assert resolved("--import", file, *echo).imports == [file]
    assert resolved("--import", file, "import=['/gone/own.py']", "data_fingerprint=0").imports == [file]


def test_help_lists_what_was_added(home, capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.parse(["--import", str(home / "mine.py"), "--help"])
    text = capsys.readouterr().out
    assert "--kd.type=aekd|average|baseline|best|blend|" in text and "--kd.share=float  [0.5]" in text
    assert "cifar_python|digits|stripes" in text


def test_a_loss_that_was_added_is_used_by_every_method(tmp_path):
    code = """
import kd_methods
def squares(student, teachers, labels, temperature, progress):
    return temperature**2 * (student - teachers).square().mean(-1)
kd_methods.add_loss("squares", squares)
"""
    own_code.run([imported(tmp_path, code)])
    student, taught = torch.randn(3, 5), torch.randn(2, 3, 5)
    outputs = kd_methods.StudentOutput(student), kd_methods.TeacherOutputs(taught)
    method = kd_methods.build({"type": "average", "loss": "squares", "temperature": 2.0})
    _, found = method(*outputs, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found["loss_distill"], 4 * (student - taught).square().mean())
    assert method.config.model_dump()["loss"] == "squares" and "squares" in method.describe(2)
    with pytest.raises(UserError, match="kd.loss: is 'square', allowed: .*'squares', did you mean 'squares'"):
        resolved("--kd.type=average", "--kd.loss=square", TAUGHT[1])


# ------------------------------------------------------------------------------------------------ mistakes in it


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ny = z\n", "own.py: line 2: NameError: name 'z' is not defined"),
        ("x = (\n", "own.py: line 1: SyntaxError: '(' was never closed"),
        ("def f():\n  x\n x\n", "own.py: line 3: IndentationError: unindent does not match"),
        ("import no_such_module\n", "own.py: line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f():\n    raise KeyError('a')\nf()\n", "own.py: line 2: KeyError: 'a'"),
        ("import sys\nsys.exit(0)\n", "own.py: line 2: exits the program"),
        (
            "from timm.models import register_model\n@register_model\ndef resnet18(**kwargs):\n    pass\n",
            "own.py: line 2: there is a network 'resnet18' already; choose another name",
        ),
        (
            "import kd_methods\nkd_methods.add('average', kd_methods)\n",
            "own.py: line 2: ValueError: method 'average': there is one of this name already",
        ),
        ("import kd_methods\nkd_methods.add('Mine', 1)\n", "a name consists of lower-case letters"),
        ("import kd_methods\nkd_methods.add('mine', 1)\n", "line 2: ValueError: method 'mine': needs a class Config"),
        (
            "import kd_methods\nclass M:\n    class Config(kd_methods.LogitConfig):\n        type: str = 'm'\n"
            "    class Method(kd_methods.KDMethod):\n        pass\nkd_methods.add('m', M)\n",
            "line 7: ValueError: method 'm': its Config needs the line: type: Literal[\"m\"] = \"m\"",
        ),
        ("import kd_methods\nkd_methods.add_loss('dkd', print)\n", "loss 'dkd': there is one of this name already"),
        ("from kd_core import sources\nsources.add('hub', print)\n", "data source 'hub': there is one of this name"),
    ],
)
def test_a_file_that_fails_is_one_message_with_its_line(code, message, tmp_path):
    before = set(timm.list_models()), kd_methods.names(), kd_methods.losses(), sources.added()
    with pytest.raises(UserError) as caught:
        own_code.run([imported(tmp_path, code)])
    assert str(caught.value).startswith("--import: ") and message in str(caught.value)
    assert before == (set(timm.list_models()), kd_methods.names(), kd_methods.losses(), sources.added())
    assert not own_code.files()


@pytest.mark.parametrize("name", ["nowhere.py", "a_module", "."])
def test_a_missing_file_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--import: {re.escape(name)}: no such file; the path of a .py file is needed"):
        resolved("--import", name)


NETWORK = """
import torch
from torch import nn
from timm.models import register_model
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(3, classes)
    def forward(self, images):
        {forward}
@register_model
def own_net({signature}):
    {build}
"""
PARTS = {
    "forward": "return self.head(images.mean((2, 3)))",
    "signature": "pretrained=False, num_classes=10, **kwargs",
    "build": "return Net(num_classes)",
}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"signature": "num_classes"}, "cannot be called: got an unexpected keyword argument 'pretrained'"),
        ({"build": "return Net"}, "gives a type, a torch.nn.Module is needed"),
        ({"build": "return Net(classes)"}, "cannot be built: .*own.py, line 13, in own_net .*NameError"),
        (
            {"build": "return Net(7)"},
            r"gives a tensor \[2, 7\] of float32 for two images, one tensor of logits \[2, 5\]",
        ),
        (
            {"forward": f"{PARTS['forward']}\n    def get_extra_state(self):\n        return 3"},
            "its state_dict holds '_extra_state', a int; checkpoints hold tensors",
        ),
        (
            {"forward": "return self.head(images.mean((2, 3))), images"},
            r"gives a tuple of 2 \(.*\) for two images, one tensor of logits \[2, 5\] is needed",
        ),
        (
            {"forward": "return self.head(images.flatten(1))"},
            r"fails on images \[2, 3, 16, 16\]: .*own.py, line 10, in forward .*RuntimeError: mat1 and mat2",
        ),
    ],
)
def test_a_network_that_lacks_what_is_needed_is_refused(parts, message, tmp_path):
    own_code.run([imported(tmp_path, NETWORK.format(**PARTS | parts))])
    with pytest.raises(UserError, match=rf"model.name 'own_net' \(own.py\): {message}"):
        models.create_model("own_net", num_classes=5, img_size=16, where="model.name")


def test_a_network_whose_export_cannot_be_read_back_is_refused_before_training(home, tmp_path, monkeypatch):
    """Names that begin with "module." are taken for those of DataParallel."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    file = imported(tmp_path, NETWORK.format(**PARTS).replace("self.head", "self.module"))
    words = ["--model.name=own_net", "--model.img_size=16", "--data.train_size=300", f"--output_dir={tmp_path}/runs"]
    with pytest.raises(UserError, match="model.name: the trained network could not be read back: model.safetensors"):
        train_kd.main(["--import", file, *words, f"--kd.type={kd_methods.LABEL_ONLY}", "--teachers=[]"])
    assert not list((tmp_path / "runs").glob("*"))


def test_a_network_is_checked_without_a_trace(tmp_path):
    forward = "return self.head(nn.functional.dropout(images, 0.5, True).mean((2, 3)))"
    own_code.run([imported(tmp_path, NETWORK.format(**PARTS | {"forward": forward}))])
    torch.manual_seed(0)
    model = models.create_model("own_net", num_classes=5, img_size=16)
    after = torch.rand(3)
    torch.manual_seed(0)
    plain = timm.create_model("own_net", num_classes=5)
    assert model.training and torch.equal(after, torch.rand(3))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))


def test_a_plain_network_needs_a_size(tmp_path):
    own_code.run([imported(tmp_path, NETWORK.format(**PARTS))])
    message = "'own_net': has no pretrained_cfg with its input size; set img_size"
    with pytest.raises(UserError, match=message):
        models.input_size("own_net")
    with pytest.raises(UserError, match=message):
        models.create_model("own_net", num_classes=5)


def test_logits_that_are_cached_are_known_by_the_networks_code(tmp_path):
    own_code.run([imported(tmp_path, NETWORK.format(**PARTS))])
    (file,) = own_code.files()
    assert teachers._code_of("own_net") == {"code": file.digest} and teachers._code_of("cifar_resnet8") == {}


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ("return self.label_loss(student.logits, labels).mean(), {}", "lacks the metric 'loss_label'"),
        ("return None", "TypeError: cannot unpack"),
        (
            GOOD.replace("return hard", "assert hard.item() > 0\n        return hard"),
            "under torch.vmap: .*own.py, line 11, in compute .*RuntimeError",
        ),
        (GOOD.replace(".mean()", ""), r"its loss has shape \[4\]|fails on a batch"),
        (
            f"import torch\n        self.share = torch.nn.Parameter(torch.ones(()))\n        {GOOD}",
            "has the parameter 'share', and a method's parameters are trained only with",
        ),
        ("raise KeyError('odd')", r"fails on a batch of four images.*own.py, line 9, in compute .*KeyError: 'odd'"),
    ],
)
def test_a_method_that_lacks_what_is_needed_is_refused(compute, message, tmp_path):
    own_code.run([imported(tmp_path, METHOD.format(compute=compute))])
    config = kd_methods.config_class("own_method").model_validate({})
    with pytest.raises(UserError, match=f"^kd.type 'own_method', kd.loss 'kd' .own.py.: .*(?:{message})"):
        interface.check_method(config, 2, 5)


def test_a_method_is_told_what_its_init_lacks(tmp_path):
    own = METHOD.format(compute=GOOD).replace(
        "    def compute",
        "    def __init__(self, config, *, num_classes=None, label_smoothing=0.0):\n"
        "        super().__init__(config, num_classes=num_classes, label_smoothing=label_smoothing)\n\n    def compute",
    )
    own_code.run([imported(tmp_path, own)])
    split = Split(torch.zeros(40, 8, 8, 3), torch.arange(40) % 10, torch.arange(40), "train", "")
    data = SimpleNamespace(train=split, shown=split, num_classes=10, class_names=list("abcdefghij"))

    def build(**training):
        teacher = {"model": "cifar_resnet8", "weights": "any.pt"}
        values = {"kd": {"type": "own_method"}, "teachers": [teacher], "training": training}
        config = configuration.resolve([configuration.Layer("test", values)]).config
        return build_method(config, data, None, None, [], None)

    assert build().num_classes == 10
    message = r"^kd.type 'own_method': its __init__ does not take class_weights, .*accept \*\*more"
    with pytest.raises(UserError, match=message):
        build(class_weights="balanced")


def test_a_method_that_gives_all_is_taken(tmp_path):
    own_code.run([imported(tmp_path, METHOD.format(compute=GOOD))])
    interface.check_method(kd_methods.config_class("own_method").model_validate({}), 2, 5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"gave an array float32 \[8, 8, 3\]; images are uint8 \[height, width, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"gave an array uint8 \[3, 8, 8\]"),
        (None, "gave 0 images for rows 0 to 2"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    found = [] if images is None else [images] * 2
    raw = sources.RawSplit("train", "k", lambda: ([0, 1], None), lambda start, stop: found, [])
    sources.add("own_images", lambda config: sources.Source("own", ["train"], lambda name: raw))
    split = sources.open_source(DataConfig(source="own_images")).open("train")
    with pytest.raises(UserError, match=f"data.source 'own_images': {message}"):
        split.images(0, 2)


def test_an_invalid_source_is_refused():
    sources.add("own_images", lambda config: None)
    with pytest.raises(UserError, match="must give a kd_core.data.sources.Source, gave builtins.NoneType"):
        sources.open_source(DataConfig(source="own_images"))


def test_an_error_in_training_is_shown_as_the_users(tmp_path, monkeypatch, capsys):
    code = "def work(number):\n    return [][number]\n"
    own_code.run([imported(tmp_path, code)])
    work = sys.modules[f"own_{own_code.files()[0].digest[:12]}"].work
    monkeypatch.setattr(sys, "argv", ["train_kd.py"])
    with pytest.raises(SystemExit) as end:
        run_script(lambda words: work(3), "train_kd.py")
    text = capsys.readouterr().err
    assert end.value.code == 1 and "Traceback" in text and "report" not in text
    assert f"train_kd.py: {tmp_path / 'own.py'}, line 2, in work (return [][number]): IndexError" in text
