"""Int8 exports say what they cost, and are kept only where they pay.

The students are those that other tests share: small networks that were trained on digits.  Times are given, but in one
test, since the machine that runs tests is busy.
"""

import contextlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from small_students import NAMES, make_student

import evaluate_kd
from kd_core.config import Config
from kd_core.data.dataset import Data, load_data
from kd_core.errors import UserError
from kd_core.export import card, int8, write
from kd_core.export.int8 import Int8
from kd_core.models import build as models

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()
FASTER, SLOWER = [2e-3, 1e-3], [1e-3, 2e-3]


@pytest.fixture
def run(digits_teachers) -> Path:
    """A run of cifar_resnet8."""
    return next(path for path in digits_teachers if "resnet8" in path.name)


@pytest.fixture
def given_times(monkeypatch):
    """Sets the times that are measured."""
    return lambda times: monkeypatch.setattr(int8, "latencies", lambda *_: times)


@pytest.fixture(scope="module")
def exported(digits_teachers, tmp_path_factory) -> tuple[Path, str]:
    """An int8 export whose times were measured, kept whatever they are, and what was printed.

    Beside it lies the float32 file that it was made from.
    """
    out = tmp_path_factory.mktemp("int8") / "out"
    run = next(path for path in digits_teachers if "resnet8" in path.name)

    def write_onnx(loaded, file, checks):
        logits = write.write_onnx(loaded, file, checks)
        shutil.copyfile(file, out.with_name("float32.onnx"))
        return logits

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(int8, "SECONDS", 0.2)
        patch.setattr(int8, "write_onnx", write_onnx)
        export(run, out, "--keep-int8")
    return out, printed.getvalue()


@pytest.fixture
def same_float32(exported, monkeypatch):
    """The network is not traced again: its float32 file is that of `exported`."""

    def write_onnx(loaded, file, checks):
        shutil.copyfile(exported[0].with_name("float32.onnx"), file)
        return checks.logits

    monkeypatch.setattr(int8, "write_onnx", write_onnx)


@pytest.fixture
def same_files(exported, same_float32, monkeypatch):
    """Nor is it quantized again."""
    copy = lambda _, file, *rest: shutil.copyfile(exported[0] / "model.onnx", file)  # noqa: E731
    monkeypatch.setattr(int8, "quantize", copy)


def export(run: Path, out: Path, *words: str) -> None:
    evaluate_kd.main(["--checkpoint", str(run), "--export=onnx-int8", f"--out={out}", *words])


def digits(run: Path) -> tuple[models.LoadedModel, Data]:
    config = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    loaded = models.load_export(run / "student")
    return loaded, load_data(config.data, model_sizes=[32], cache_dir=config.cache.folder)


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


# --------------------------------------------------------------------------------------------- what is written


def test_weights_are_integers_and_the_normalization_is_inside(exported, run):
    model = onnx.load(exported[0] / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    loaded, _ = digits(run)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(module, torch.nn.Conv2d) for module in loaded.model.modules())
    giving = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in convolutions:
        activation, weight = (giving[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert stored[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert stored[activation.input[2]].data_type == onnx.TensorProto.UINT8
        channels = stored[weight.input[0]].dims[0]
        assert list(stored[weight.input[1]].dims) == [channels], "a scale per output channel"
    assert giving["logits"].op_type not in ("DequantizeLinear", "QuantizeLinear")
    assert (exported[0] / "model.onnx").stat().st_size < 0.6 * 4 * sum(p.numel() for p in loaded.model.parameters())


def test_it_reads_the_files_that_the_float32_kind_reads_and_describes_itself(exported, run):
    folder, loaded = exported[0], digits(run)[0]
    model, about = onnx.load(folder / "model.onnx"), json.loads((folder / "preprocessing.json").read_text())
    measured = about.pop("int8")
    inside = {item.key: json.loads(item.value) for item in model.metadata_props}
    assert about == inside | {"opset": write.OPSET} and inside == write.about(loaded)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", write.OPSET)}
    assert sorted(path.name for path in folder.iterdir()) == sorted(write.FILES["onnx-int8"])
    assert measured["calibration_images"] == int8.CALIBRATED and measured["measured_split"] == "val"
    assert measured["bytes"]["int8"] == (folder / "model.onnx").stat().st_size < measured["bytes"]["float32"]
    assert all(value > 0 for value in measured["latency_ms"].values())


def test_layer_norms_of_a_transformer_stay_float32_and_its_other_weights_do_not(tmp_path, caplog):
    loaded = models.load_export(make_student(tmp_path / "student", "test_vit"))
    pixels = torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    checks = write.prepare(loaded, pixels)
    write.write_onnx(loaded, tmp_path / "float32.onnx", checks)
    int8.quantize(tmp_path / "float32.onnx", tmp_path / "int8.onnx", iter([checks.images]), {})
    assert "root" not in {record.name for record in caplog.records}  # where ONNX Runtime warns of quantized norms
    stored = {tensor.name: tensor for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    matrices = [tensor for tensor in stored.values() if len(tensor.dims) == 2 and min(tensor.dims) > len(NAMES)]
    assert matrices and all(tensor.data_type == onnx.TensorProto.INT8 for tensor in matrices)
    norms = [node for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "LayerNormalization"]
    assert norms and all(stored[node.input[1]].data_type == onnx.TensorProto.FLOAT for node in norms)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_any_batch_gets_the_logits_of_its_images(exported, run, count):
    loaded, data = digits(run)
    images = write.prepare(loaded, data.val.images[data.val.rows[:40]]).images
    found = session(exported[0] / "model.onnx")
    [whole] = found.run(None, {"images": images.numpy()})
    [part] = found.run(None, {"images": images[:count].numpy()})
    assert abs(part - whole[:count]).max() < 1e-4


def test_accuracy_and_agreement_are_those_of_the_students_own_logits(exported, run):
    """Of all validation images, beside PyTorch's float32 logits; printed, in the card and in preprocessing.json."""
    loaded, data = digits(run)
    checks = write.prepare(loaded, data.val.images[data.val.rows])
    labels, student = data.val.labels[data.val.rows], checks.logits.argmax(1)
    [logits] = session(exported[0] / "model.onnx").run(None, {"images": checks.images.numpy()})
    own = torch.from_numpy(logits).argmax(1)
    measured = json.loads((exported[0] / "preprocessing.json").read_text())["int8"]
    accuracy = {"float32": float((student == labels).double().mean()), "int8": float((own == labels).double().mean())}
    agreement = float((own == student).double().mean())
    assert measured["accuracy"] == pytest.approx(accuracy) and measured["agreement"] == pytest.approx(agreement)
    assert measured["measured_images"] == len(labels) and accuracy["float32"] > 0.5 and agreement > 0.95
    text, printed = (exported[0] / "README.md").read_text(), exported[1]
    assert f"| accuracy | {accuracy['float32']:.2%} | {accuracy['int8']:.2%} |" in text
    assert f"| same class as float32 |  | {agreement:.2%} |" in text
    assert f"accuracy {accuracy['int8']:.2%} (float32 {accuracy['float32']:.2%}), the same class for" in printed
    assert f"for {agreement:.2%} of {len(labels)} images of the val split; " in printed
    for name in ("float32", "int8"):
        assert f"{measured['latency_ms'][name]:.3g}" in text and f"{measured['latency_ms'][name]:.3g} ms" in printed


def test_the_card_has_code_that_loads_it_and_claims_no_metrics_of_the_student(exported, run):
    text = (exported[0] / "README.md").read_text()
    code = card.loading_code("onnx-int8", digits(run)[0])
    assert f"```python\n{code}```" in text and f"```python\n{code}```" in DOCUMENT
    found = ModelCard(text).data
    assert found.library_name == "onnx" and "onnx-int8" in found.tags and not found.eval_results
    assert "Before it was quantized, in float32:\n\n|" in text and "on 512 training" not in text
    assert "512 training images" in text and re.search(r"The logits of the float32 file differ .* at most \d", text)


# ---------------------------------------------------------------------------------------------------- refusals


def test_a_slower_one_is_refused_unless_asked_for(run, tmp_path, given_times, same_files, capsys):
    given_times(SLOWER)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "preprocessing.json").write_text("the former one")
    measured = r"accuracy .* 2 ms per image in one thread \(float32 1 ms\).*; nothing was written, and --keep-int8"
    for name in ("there", "new"):
        with pytest.raises(UserError, match=f"onnx-int8: cifar_resnet8: it is slower than float32: {measured}"):
            export(run, tmp_path / name)
    assert (tmp_path / "there" / "preprocessing.json").read_text() == "the former one"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    export(run, tmp_path / "there", "--keep-int8")
    assert "2 ms per image in one thread (float32 1 ms)" in capsys.readouterr().out
    text = (tmp_path / "there" / "README.md").read_text()
    assert "It was kept on request, although it is slower than float32." in text


def test_a_faster_one_that_agrees_is_kept(run, tmp_path, given_times, same_files):
    given_times(FASTER)
    export(run, tmp_path / "out")
    assert "kept on request" not in (tmp_path / "out" / "README.md").read_text()


def test_one_that_loses_accuracy_is_refused(run, tmp_path, given_times, same_float32, monkeypatch):
    """Ranges from images without contrast are too narrow for real ones."""
    given_times(FASTER)
    quantize = int8.quantize

    def narrow(float32, file, images, described):
        quantize(float32, file, (0.5 + 0.01 * batch for batch in images), described)

    monkeypatch.setattr(int8, "quantize", narrow)
    with pytest.raises(UserError, match="it loses more than half a point of accuracy: accuracy .*; nothing was writ"):
        export(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("right", "images", "seconds", "objections"),
    [
        ((900, 895), 1000, FASTER, []),  # half a point
        ((900, 894), 1000, FASTER, ["loses more than half a point of accuracy"]),
        ((100, 99), 199, FASTER, ["loses more than half a point of accuracy"]),
        ((100, 99), 200, FASTER, []),
        ((894, 900), 1000, [1e-3, 1e-3], []),
        ((900, 900), 1000, SLOWER, ["is slower than float32"]),
        ((900, 0), 1000, SLOWER, ["is slower than float32", "loses more than half a point of accuracy"]),
    ],
)
def test_what_is_refused(right, images, seconds, objections):
    assert Int8(512, images, "val", right, 0, tuple(seconds), (2, 1), "here").objections == objections


def test_without_its_data_it_is_one_message_and_nothing_is_written(tmp_path, capsys):
    student = make_student(tmp_path / "student", "cifar_resnet20")
    with pytest.raises(UserError, match="onnx-int8: needs the images .* but these cannot be used: --config: needed"):
        evaluate_kd.main(["--checkpoint", str(student), "--export=timm,onnx-int8", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists() and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--export=onnx --keep-int8", "--keep-int8: belongs to --export onnx-int8"),
        ("--keep-int8", "--keep-int8: belongs to --export onnx-int8"),
        ("--export=int8", "--export: unknown kind 'int8', allowed: timm, onnx, program, hub, onnx-int8"),
        ("--export=onnx-int8 --out=kd_core", "--out: kd_core would be replaced, but holds"),
    ],
)
def test_bad_switches(run, words, text):
    with pytest.raises(UserError, match=re.escape(text)):
        evaluate_kd.main(["--checkpoint", str(run), *words.split()])


# -------------------------------------------------------------------------------------------- images and times


def test_calibration_sees_training_images_of_all_classes_and_none_that_are_measured(run):
    _, data = digits(run)
    calibration, measured = int8.choose(data)
    assert set(calibration.rows.tolist()) <= set(data.train.rows.tolist()) and len(calibration) == int8.CALIBRATED
    assert len(calibration.labels[calibration.rows].unique()) == 10
    assert sorted(measured.rows.tolist()) == data.val.rows.tolist() and measured.name == "val"
    again, _ = int8.choose(data)
    assert torch.equal(again.rows, calibration.rows)
    few = replace(data, val=None, train=replace(data.train, rows=data.train.rows[:99]))
    calibration, measured = int8.choose(few)
    assert (len(calibration), len(measured), measured.name) == (49, 50, "train")
    assert not set(calibration.rows.tolist()) & set(measured.rows.tolist())


def test_calibration_images_are_training_images_as_evaluation_sees_them(run):
    loaded, data = digits(run)
    calibration, _ = int8.choose(data)
    images = torch.cat(list(int8.batches(loaded, calibration, "test")))
    assert torch.equal(images, write.prepare(loaded, data.train.images[calibration.rows]).images)


def test_times_are_of_one_thread_and_files_take_turns(monkeypatch, exported):
    ran, threads = [], []

    class Session:
        def __init__(self, file, options, providers):
            self.file = file
            threads.append((options.intra_op_num_threads, options.inter_op_num_threads))

        def run(self, _, feed):
            ran.append(self.file)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(int8, "SECONDS", 0)
    times = int8.latencies(["a", "b"], torch.zeros(1))
    assert ran == ["a", "b"] * (1 + int8.FEWEST) and threads == [(1, 1)] * 2 and all(0 <= t < 1 for t in times)
