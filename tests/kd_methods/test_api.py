"""The package's face: discovery, configs, error texts, descriptions."""

import ast
import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from method_variants import method_for
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import nn

import kd_methods
from kd_methods import KDMethod, MethodConfig, StudentOutput, TeacherOutputs, logit_losses
from kd_methods._weighted import WeightedConfig

FOLDER = Path(kd_methods.__file__).parent
DOCS = FOLDER.parent / "docs" / "methods.md"


def test_names_are_the_files() -> None:
    files = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    assert kd_methods.names() == files
    assert {"average", "baseline", "ca_weighted", "confidence", "dynamic"} <= set(files)
    for name in files:
        assert kd_methods.config_class(name).model_validate({}).type == name


def test_only_the_label_only_method_works_without_teachers() -> None:
    without = [n for n in kd_methods.names() if not kd_methods.build({"type": n}).requires_teachers]
    assert without == [kd_methods.LABEL_ONLY]
    loss, metrics = kd_methods.build({"type": kd_methods.LABEL_ONLY})(
        StudentOutput(torch.zeros(2, 4)), TeacherOutputs(), torch.tensor([0, 3])
    )
    torch.testing.assert_close(loss, torch.tensor(4.0).log())
    assert metrics["kd_weight"] == 0 and metrics["loss_distill"] == 0


def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top and elsewhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        found |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            found.add(node.module)
    return found


def test_imports_are_torch_pydantic_and_the_standard_library() -> None:
    allowed = {"torch", "pydantic", "kd_methods"} | sys.stdlib_module_names
    for path in FOLDER.rglob("*.py"):
        assert {module.split(".")[0] for module in imports(path) - {"kd_core.errors"}} <= allowed, path.name
    for path in (FOLDER.parent / "kd_core" / name for name in ("__init__.py", "errors.py")):
        assert {module.split(".")[0] for module in imports(path)} <= sys.stdlib_module_names, path.name


def test_losses_are_the_files() -> None:
    files = sorted(path.stem for path in (FOLDER / "logit_losses").glob("*.py") if not path.stem.startswith("_"))
    assert kd_methods.losses() == files and {"kd", "dkd", "dist"} <= set(files)
    for name in files:
        config = kd_methods.build({"type": "average", "loss": name}).config
        assert (name in type(config).model_fields) == bool(logit_losses.config_class(name).model_fields)
        assert ("T=4" in config.describe_loss()) == logit_losses.config_class(name).uses_temperature


def nested(cls: type[BaseModel]) -> list[type[BaseModel]]:
    annotations = [field.annotation for field in cls.model_fields.values()]
    return [cls, *(a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel))]


@pytest.mark.parametrize("name", kd_methods.names())
def test_every_hyperparameter_has_a_default_and_a_description(name: str) -> None:
    for cls in nested(kd_methods.config_class(name)):
        for key, field in cls.model_fields.items():
            assert not field.is_required(), key
            assert key == "type" or field.description, f"{name}.{key}"


def test_defaults() -> None:
    dynamic = kd_methods.build({"type": "dynamic"}).config.model_dump()
    expected = {
        "temperature": 4.0,
        "gamma": 10.0,
        "threshold": 0.5,
        "alpha": 0.5,
        "scope": "batch",
        "loss": "kd",
    }
    assert expected.items() <= dynamic.items()
    assert dynamic["dkd"] == {"alpha": 1.0, "beta": 8.0, "warmup": 20 / 240}
    average = kd_methods.build({"type": "average"}).config
    assert (average.hard_weight, average.soft_weight, average.average_of) == (1.0, 1.0, "losses")


def test_any_config_picks_the_class_by_type() -> None:
    any_config: Any = kd_methods.AnyConfig
    adapter: TypeAdapter[Any] = TypeAdapter(any_config)
    config: Any = adapter.validate_python({"type": "dynamic", "gamma": 2, "dkd": {"alpha": 0.5}})
    assert (config.gamma, config.dkd.alpha, config.dkd.beta) == (2.0, 0.5, 8.0)
    assert type(config) is kd_methods.config_class("dynamic")
    assert len(get_args(get_args(kd_methods.AnyConfig)[0])) == len(kd_methods.names())
    for name in kd_methods.names():
        assert (
            adapter.validate_python(
                json.loads(kd_methods.config_class(name).model_validate({}).model_dump_json())
            ).type
            == name
        )
    with pytest.raises(ValidationError):
        adapter.validate_python({"type": "nothing"})


def test_build_takes_a_config_object_and_a_dict_alike() -> None:
    by_dict = kd_methods.build({"type": "dynamic", "gamma": 2.0})
    config = by_dict.config
    assert (
        isinstance(config, MethodConfig) and isinstance(by_dict, KDMethod) and isinstance(by_dict, nn.Module)
    )
    assert kd_methods.build(config).config == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "dynamc"}, "kd.type: 'dynamc' is not a method, did you mean 'dynamic'?; methods: aekd, average"),
        ({"gamma": 1.0}, "kd.type: '' is not a method"),
        ({"type": "_base"}, "kd.type: '_base' is not a method"),
        (
            {"type": "dynamic", "gama": 1.0},
            "kd.gama: unknown key, did you mean 'gamma'?; keys: type, temperature",
        ),
        ({"type": "baseline", "temperature": 4.0}, "kd.temperature: unknown key"),
        (
            {"type": "average", "dkd": {"bta": 1.0}},
            "kd.dkd.bta: unknown key, did you mean 'beta'?; keys: alpha, beta, warmup",
        ),
        ({"type": "average", "temperature": 0}, "kd.temperature: 0 is wrong: Input should be greater than 0"),
        (
            {"type": "average", "temperature": "4"},
            "kd.temperature: '4' is wrong: Input should be a valid number",
        ),
        ({"type": "average", "temperature": float("nan")}, "kd.temperature: nan is wrong"),
        (
            {"type": "dynamic", "alpha": 1.5},
            "kd.alpha: 1.5 is wrong: Input should be less than or equal to 1",
        ),
        (
            {"type": "dynamic", "scope": "all"},
            "kd.scope: 'all' is wrong: Input should be 'batch' or 'sample'",
        ),
        (
            {"type": "dynamic", "use_hard_loss": 0},
            "kd.use_hard_loss: 0 is wrong: Input should be a valid boolean",
        ),
        ({"type": "dynamic", "use_hard_loss": False, "use_soft_loss": False}, "kd: use_soft_loss is off"),
        ({"type": "dynamic", "alpha": 0.0, "use_soft_loss": False}, "kd: use_soft_loss is off"),
        (
            {"type": "confidence", "use_hard_loss": False, "use_soft_loss": False},
            "kd: use_soft_loss and use_hard_",
        ),
        (
            {"type": "average", "hard_weight": 0.0, "soft_weight": 0.0},
            "kd: hard_weight and soft_weight are both 0",
        ),
        ({"type": "dynamic", "gama": 1.0, "alpha": 2.0}, "kd.alpha: 2.0 is wrong"),
        (
            {"type": "average", "loss": "ttm", "temperature": 2.0},
            "kd: temperature: is 2.0, but loss 'ttm' has no temperature, only its own settings (ttm.exponent)",
        ),
        (
            {"type": "average", "loss": "wttm", "teacher_temperatures": [2.0]},
            "kd: teacher_temperatures: is [2.0], but loss 'wttm' has no temperature",
        ),
        ({"type": "average", "teacher_temperatures": [0]}, "kd.teacher_temperatures[0]: 0 is wrong: Input should be"),
        ({"type": "average", "teacher_temperatures": []}, "kd.teacher_temperatures: [] is wrong: List should have"),
        (
            {"type": "average", "teacher_temperatures": [2.0], "temperature": 3.0},
            "kd: temperature: 3 and teacher_temperatures exclude each other; set one",
        ),
        (
            {"type": "average", "teacher_temperatures": [2.0], "average_of": "probabilities"},
            "kd: average_of probabilities has one temperature; leave teacher_temperatures out",
        ),
        (
            {"type": "average", "standardize": True, "norm_temperature": True},
            "kd: standardize and norm_temperature both divide logits by their deviation; choose one",
        ),
        ({"type": "average", "abkd": {"alpha": 0.5, "beta": -0.5}}, "kd.abkd: alpha 0.5 and beta -0.5 add up to 0"),
        ({"type": "average", "correct_labels": "yes"}, "kd.correct_labels: 'yes' is wrong: Input should be 'none'"),
    ],
)
def test_error_texts(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        kd_methods.build(config)


@pytest.mark.parametrize("temperature", [{}, {"temperature": 4.0}, {"temperature": 1.0}])
@pytest.mark.parametrize("loss", ["ttm", "wttm"])
def test_a_loss_without_temperature_takes_what_settings_always_state(loss: str, temperature: dict[str, float]) -> None:
    config = kd_methods.build({"type": "average", "loss": loss, **temperature}).config
    assert "T=4" not in config.describe_loss() and config.temperature_of(0) == 1.0
    inputs = StudentOutput(torch.randn(3, 4)), TeacherOutputs(torch.randn(2, 3, 4)), torch.arange(3)
    values = [
        kd_methods.build({"type": "average", "average_of": "probabilities", "loss": loss, "temperature": t})(*inputs)[0]
        for t in (1.0, 4.0)
    ]
    assert values[0] == values[1]


def test_temperatures_for_another_number_of_teachers() -> None:
    method = kd_methods.build({"type": "ca_weighted", "teacher_temperatures": [2.0, 4.0]})
    with pytest.raises(ValueError, match=r"^kd.teacher_temperatures: gives 2, but there are 3 teacher\(s\)$"):
        method(StudentOutput(torch.randn(3, 4)), TeacherOutputs(torch.randn(3, 3, 4)), torch.arange(3))


def test_switches_that_are_off_are_not_recorded() -> None:
    default = kd_methods.build({"type": "average"}).config.model_dump()
    assert not {"norm_temperature", "entropy_weight", "correct_labels", "teacher_temperatures"} & default.keys()
    given = {"entropy_weight": True, "correct_labels": "swap", "teacher_temperatures": [2.0]}
    assert given.items() <= kd_methods.build({"type": "average", **given}).config.model_dump().items()


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ValueError) as error:
        kd_methods.build({"type": "dynamic", "gama": 1.0, "alpha": 2.0})
    assert len(str(error.value).splitlines()) == 2


def test_label_smoothing_is_checked() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing: 1.0 is not in \[0, 1\)"):
        kd_methods.build({"type": "baseline"}, label_smoothing=1.0)


@pytest.mark.parametrize(
    ("config", "num_teachers", "parts"),
    [
        ({"type": "baseline"}, 0, ["1 x cross-entropy", "no teachers"]),
        (
            {"type": "average", "soft_weight": 0.9, "hard_weight": 0.1},
            1,
            ["0.1 x", "0.9 x T^2 KL at T=4", "1 teacher"],
        ),
        ({"type": "average", "average_of": "probabilities"}, 3, ["averaged probabilities of 3 teachers"]),
        (
            {"type": "ca_weighted", "temperature": 8.0},
            3,
            ["sum over 3 teachers of (batch-mean", "T^2 KL at T=8"],
        ),
        ({"type": "ca_weighted", "scope": "sample"}, 2, ["(per-sample"]),
        (
            {"type": "dynamic", "gamma": 2.5, "threshold": 0.3, "alpha": 0.7},
            3,
            ["2.5", "0.3", "0.7 x cross-entropy"],
        ),
        ({"type": "dynamic", "alpha": 0.75}, 1, ["0.75 x T^2 KL", "0.25 x cross-entropy"]),
        ({"type": "dynamic", "use_soft_loss": False, "alpha": 0.3}, 3, ["loss = 0.3 x cross-entropy"]),
        ({"type": "confidence", "temperature": 16.0}, 3, ["T=16", "most confident of 3 teachers", "(1 - a)"]),
        (
            {"type": "average", "loss": "dkd", "dkd": {"alpha": 0.5, "beta": 6.0}},
            1,
            ["0.5 TCKD + 6 NCKD", "0.0833"],
        ),
        (
            {"type": "average", "loss": "dist", "dist": {"beta": 2.0}},
            1,
            ["2 inter-class + 1 intra-class DIST"],
        ),
        ({"type": "average", "standardize": True}, 1, ["on standardized logits"]),
        (
            {"type": "average", "norm_temperature": True, "correct_labels": "swap", "entropy_weight": True},
            2,
            ["at T=4 times the deviation of the logits with wrong top classes of teachers swapped", "by entropies"],
        ),
        ({"type": "average", "correct_labels": "raise", "loss": "wttm"}, 1, ["power 0.2", "labels raised to the top"]),
        ({"type": "average", "teacher_temperatures": [2.0, 8]}, 2, ["at T=2, 8,"]),
        ({"type": "average", "loss": "rld"}, 1, ["1 SCD at T=1 + 8 T^2 MCD", "0.0833 of training"]),
        ({"type": "average", "loss": "mlkd"}, 1, ["1 instance + 1 class + 1 batch", "T=3, 5, 2, 6) at T=4"]),
    ],
)
def test_describe_gives_the_numbers(config: dict[str, Any], num_teachers: int, parts: list[str]) -> None:
    text = kd_methods.build(config).describe(num_teachers)
    assert text.startswith("loss = ") and "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("name", kd_methods.names())
def test_methods_copy_and_carry_no_state(name: str) -> None:
    method = kd_methods.build({"type": name})
    assert list(method.state_dict()) == ["steps"] * (name == "random")  # weights of a whole run: test_weightings.py
    assert pickle.loads(pickle.dumps(copy.deepcopy(method))).config == method.config


class Scaled(KDMethod):
    """A method with a parameter, a layer and a buffer of its own."""

    def __init__(self, config: MethodConfig, **more: Any) -> None:
        super().__init__(config, **more)
        self.scale = nn.Parameter(torch.ones(()))
        self.layer = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def compute(self, student: StudentOutput, *_: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.scale * self.layer(student.logits).square().mean(), {}


def test_a_method_with_parameters_is_a_module_like_others() -> None:
    method = Scaled(kd_methods.config_class("baseline").model_validate({}))
    method.requires_teachers = False
    assert isinstance(method, nn.Module) and isinstance(method, Scaled) and type(method) is type(copy.copy(method))
    assert set(method.state_dict()) == {"scale", "layer.weight", "layer.bias", "seen"}
    batch = StudentOutput(torch.ones(2, 4)), TeacherOutputs(), torch.tensor([0, 1])
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert type(other) is type(method) and other(*batch)[0] == method(*batch)[0]
        other.double().load_state_dict({name: 2 * value for name, value in method.state_dict().items()})
        assert other.scale.dtype == torch.float64 and (other.scale, method.scale) == (2, 1)
    method(*batch)[0].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    each = torch.vmap(lambda row: method(StudentOutput(row[None]), TeacherOutputs(), torch.tensor([0]))[0])
    torch.testing.assert_close(each(batch[0].logits).mean(), method(*batch)[0])


def test_settings_are_read_without_torch() -> None:
    code = """
import sys, kd_methods
for name in kd_methods.names():
    config = kd_methods.config_class(name).model_validate({})
    assert config.model_dump()["type"] == name
assert kd_methods.AnyConfig and "T=4" in kd_methods.config_class("average").model_validate({}).describe_loss()
assert "torch" not in sys.modules
assert kd_methods.build({"type": "average"}).state_dict() == {} and "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_users_own_loop() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 5), torch.randint(3, (32,))
    student, teachers = nn.Linear(5, 3), [nn.Linear(5, 3), nn.Linear(5, 3)]
    method = kd_methods.build({"type": "dynamic", "temperature": 4.0})
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss, _ = method(StudentOutput(student(x)), TeacherOutputs(torch.stack([t(x) for t in teachers])), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())


def test_the_docs_example_of_a_new_method_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file makes a method: the documented one is discovered, built by its YAML's content, and trains."""
    (source,) = re.findall(r"```python\n(\"\"\"Hardest teacher.*?)```", DOCS.read_text(), flags=re.DOTALL)
    (tmp_path / "hardest.py").write_text(source)
    monkeypatch.setattr(kd_methods, "__path__", [*kd_methods.__path__, str(tmp_path)])
    assert "hardest" in kd_methods.names()
    student = torch.randn(4, 6, requires_grad=True)
    method = kd_methods.build({"type": "hardest", "temperature": 2.0, "loss": "dkd"})
    loss, metrics = method(StudentOutput(student), TeacherOutputs(torch.randn(3, 4, 6)), torch.arange(4))
    loss.backward()
    assert student.grad is not None and loss.isfinite()
    torch.testing.assert_close(loss.detach(), metrics["loss_label"] + metrics["loss_distill"])
    del sys.modules["kd_methods.hardest"]


def test_the_docs_example_of_a_new_loss_works(tmp_path: Path) -> None:
    """One file makes a logit loss, with settings and checks of its own, and all other settings stay as they are."""
    (source,) = re.findall(r"```python\n(\"\"\"Squared.*?)```", DOCS.read_text(), flags=re.DOTALL)
    shutil.copytree(FOLDER, tmp_path / "kd_methods", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "kd_core").mkdir()
    shutil.copy(FOLDER.parent / "kd_core" / "errors.py", tmp_path / "kd_core")
    (tmp_path / "kd_methods" / "logit_losses" / "squares.py").write_text(source)
    code = """
import json, sys, torch, kd_methods
from kd_methods import StudentOutput, TeacherOutputs
settings = {"type": "average", "temperature": 2.0, "loss": "squares", "squares": {"scale": 0.5}}
method = kd_methods.build(settings)
student, teachers = torch.ones(4, 6), torch.zeros(3, 4, 6)
_, metrics = method(StudentOutput(student), TeacherOutputs(teachers), torch.arange(4))
try:
    kd_methods.build({"type": "average", "squares": {"scael": 0.5}})
except ValueError as error:
    mistake = str(error)
given = settings, {**settings, "loss": "kd"}, {"type": "average"}
dumps = [kd_methods.build(each).config.model_dump() for each in given]
known = [name for name in sys.modules if name.startswith("kd_core")]
print(json.dumps([float(metrics["loss_distill"]), method.describe(3), mistake, dumps, kd_methods.losses(), known]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loss, described, mistake, (used, changed, default), names, known = json.loads(done.stdout)
    assert loss == pytest.approx(2.0) and "T^2 0.5 (s - t)^2 at T=2" in described  # 2^2 * 0.5 * 1^2
    assert mistake == "kd.squares.scael: unknown key, did you mean 'scale'?; keys: scale"
    assert used["squares"] == changed["squares"] == {"scale": 0.5}
    assert default == kd_methods.build({"type": "average"}).config.model_dump()  # so known digests stay
    assert names == sorted([*kd_methods.losses(), "squares"])
    assert known == ["kd_core", "kd_core.errors"]  # the package is of use without the rest of the project


@pytest.mark.parametrize("name", kd_methods.losses())
def test_the_docs_have_a_section_for_every_loss(name: str) -> None:
    assert f"### `{name}`" in DOCS.read_text()


@pytest.mark.parametrize("name", kd_methods.names())
def test_the_docs_name_every_method_hyperparameter_and_metric(name: str) -> None:
    text = DOCS.read_text()
    assert f"## `{name}`" in text
    for cls in nested(kd_methods.config_class(name)):
        for key in cls.model_fields:
            assert f"`{key}`" in text or f".{key}`" in text, key

    def section(heading: str) -> str:
        return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]

    own = kd_methods.config_class(name)
    told = section(f"`{name}`") + (section("Weightings") if issubclass(own, WeightedConfig) else "")
    for key in own.model_fields.keys() - kd_methods.LogitConfig.model_fields.keys() - {"type"}:
        assert f"| `{key}" in told, f"{key} has no row in the section of its method"
    method = method_for({"type": name}, 2)
    teachers = TeacherOutputs(torch.randn(2, 3, 4) if method.requires_teachers else None)
    _, metrics = method(StudentOutput(torch.randn(3, 4)), teachers, torch.arange(3))
    for metric in metrics:
        assert f"`{re.sub(r'[0-9]', '{i}', metric)}`" in text, metric
