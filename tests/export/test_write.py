"""Exports give the student's logits wherever they are loaded, and their cards say what the student is."""

import base64
import functools
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import onnx
import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from small_students import NAMES, STUDENTS, make_student

import evaluate_kd
import kd_methods
from kd_core.config import Config
from kd_core.data.dataset import load_data
from kd_core.data.views import Augmentation, Views
from kd_core.errors import UserError
from kd_core.export import card, predict_files, write
from kd_core.files import read_object, write_json
from kd_core.models import build as models

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("timm", "onnx", "program")
DOCUMENT = (ROOT / "docs" / "export.md").read_text()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Stored images uint8 [40,32,32,3]."""
    return torch.randint(256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def written(tmp_path_factory, pixels) -> dict[str, Path]:
    """{network: folder with an export of each kind}, written once."""
    found = {}
    for name in STUDENTS:
        home = tmp_path_factory.mktemp(name)
        loaded = models.load_export(make_student(home / "student", name))
        checks = write.prepare(loaded, pixels)
        lineage = card.Lineage(home / "student", None, None, None)
        for kind in KINDS:
            describe = functools.partial(card.render, kind, loaded, lineage, images="40 images", repo=None)
            assert write.write(kind, loaded, home / kind, checks, describe) < 1e-4
        found[name] = home
    return found


def student_logits(home: Path, pixels: torch.Tensor) -> torch.Tensor:
    """As evaluation computes them."""
    loaded = models.load_export(home / "student")
    views = Views(loaded.preprocess, 32, Augmentation(4, True))
    with torch.inference_mode():
        return loaded.model.eval()(views.clean(pixels))


def isolated(code: str, folder: Path, *blocked: str) -> str:
    """What `code` prints in a new process in `folder` that cannot import the modules `blocked`."""
    start = f"import sys; sys.modules.update(dict.fromkeys({list(blocked)!r}))\n"
    done = subprocess.run([sys.executable, "-c", start + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("count", [1, 7, 40])
def test_onnx_gives_the_students_logits_for_any_batch(written, pixels, name, count):
    home = written[name]
    session = onnxruntime.InferenceSession(home / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    images = pixels[:count].permute(0, 3, 1, 2).float() / 255
    [logits] = session.run(None, {"images": images.numpy()})
    assert (torch.from_numpy(logits) - student_logits(home, pixels[:count])).abs().max() < 1e-4


@pytest.mark.parametrize("name", STUDENTS)
def test_onnx_describes_itself(written, name):
    folder = written[name] / "onnx"
    model, about = onnx.load(folder / "model.onnx"), json.loads((folder / "preprocessing.json").read_text())
    inside = {item.key: json.loads(item.value) for item in model.metadata_props}
    assert about == inside | {"opset": write.OPSET} and about["class_names"] == NAMES
    assert [item.version for item in model.opset_import if item.domain == ""] == [write.OPSET]
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == about["input"]["shape"] == ["batch", 3, 32, 32]
    assert about["mean"] == [0.5, 0.4, 0.3] and about["stored_size"] == about["resize"] == about["size"] == 32


@pytest.mark.parametrize("name", STUDENTS)
def test_a_program_gives_the_students_logits_for_any_batch_and_describes_itself(written, pixels, name):
    home, extra = written[name], {"preprocessing.json": ""}
    network = torch.export.load(home / "program" / "model.pt2", extra_files=extra).module()
    images = pixels.permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        logits = torch.cat([network(part) for part in images.split([1, 7, 32])])
    assert (logits - student_logits(home, pixels)).abs().max() < 1e-5
    assert json.loads(extra["preprocessing.json"]) == json.loads((home / "program" / "preprocessing.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_the_documents_code_is_the_cards_and_runs(written, kind):
    """In a process that knows neither this project nor, for others than timm's format, timm: as --images answers."""
    home = written["cifar_resnet20" if kind == "program" else "test_vit"]
    loaded, folder = models.load_export(home / "student"), home / kind
    code = card.loading_code(kind, loaded)
    assert f"```python\n{code}```" in DOCUMENT and f"```python\n{code}```" in (folder / "README.md").read_text()
    noise = torch.randint(256, (50, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    Image.fromarray(noise.numpy()).save(home / "picture.png")
    unneeded = ["kd_core", "kd_methods", *(["timm", "torchvision"] if kind != "timm" else [])]
    printed = isolated(code.replace("picture.png", str(home / "picture.png")), folder, *unneeded)
    [[expected], _] = predict_files.predict(loaded, [home / "picture.png"], top=5, device=torch.device("cpu"))
    found = [line.split("% ", 1) for line in printed.splitlines()]
    assert [name for _, name in found] == expected.classes
    assert [float(share) for share, _ in found] == pytest.approx([100 * p for p in expected.probabilities], abs=0.02)


def test_the_projects_own_networks_say_what_they_need(written):
    text = (written["cifar_resnet20"] / "timm" / "README.md").read_text()
    assert "not in stock timm" in text and "import kd_core.zoo" in text and "--export program" in text
    assert "not in stock timm" not in (written["test_vit"] / "timm" / "README.md").read_text()


def test_an_export_that_differs_is_not_kept(written, pixels, tmp_path):
    loaded = models.load_export(written["cifar_resnet20"] / "student")
    checks = write.prepare(loaded, pixels)
    checks.logits = checks.logits.clone()
    checks.logits[3, 4] += 0.01
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text("the former one")
    for name in ("there", "new"):
        with pytest.raises(UserError, match="differ from the student's by up to 0.01, allowed is 0.0001; nothing was"):
            write.write("timm", loaded, tmp_path / name, checks, lambda _: "")
    assert (tmp_path / "there" / "config.json").read_text() == "the former one"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("kind", ["timm", "hub"])
def test_class_names_are_at_the_top_level_and_in_timms_own_settings(written, pixels, tmp_path, kind):
    loaded = models.load_export(written["test_vit"] / "student")
    write.write(kind, loaded, tmp_path / kind, write.prepare(loaded, pixels), str)
    config = json.loads((tmp_path / kind / "config.json").read_text())
    assert config["label_names"] == config["pretrained_cfg"]["label_names"] == NAMES


def test_what_counts_as_equal():
    def difference(scale: float, error: float) -> float:
        logits = torch.full((3, 2), scale)
        checks = write.Checks(logits, logits, logits, [3])
        return checks.difference(logits + torch.tensor([0.0, error]), "it")

    assert difference(1, 5e-5) == pytest.approx(5e-5, rel=0.01) and difference(1000, 9e-4) > 1e-4
    for scale, error in ((1, 2e-4), (100, 1.5e-4), (1000, 2e-3), (1, float("nan")), (1, float("inf"))):
        with pytest.raises(UserError, match="it: its logits differ"):
            difference(scale, error)


@pytest.mark.parametrize("count", [1, 2, 8, 9, 40])
def test_few_images_are_enough(written, pixels, count):
    loaded = models.load_export(written["test_vit"] / "student")
    checks = write.prepare(loaded, pixels[:count])
    assert sum(checks.sizes) == len(checks.logits) == count and checks.sizes[0] == 1
    assert checks.difference(student_logits(written["test_vit"], pixels[:count]), "it") < 1e-6


@pytest.mark.parametrize(("size", "count"), [(32, 1000), (64, 976), (224, 79), (1024, 16)])
def test_large_networks_are_checked_on_fewer_images(size, count):
    assert write.how_many(size) == count


def test_a_network_that_cannot_be_traced_is_one_message(written, pixels, tmp_path):
    loaded = models.load_export(written["cifar_resnet20"] / "student")
    checks = write.prepare(loaded, pixels)
    loaded.model.forward = lambda images: images.mean() > 0 and images or -images
    for kind in ("onnx", "program"):
        with pytest.raises(UserError, match=f"--export {kind}: cifar_resnet20 cannot be exported: .*--export timm"):
            write.write(kind, loaded, tmp_path / kind, checks, lambda _: "")
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- the card


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with what a finished run leaves, and awkward names."""
    folder = make_student(tmp_path / "run-1" / "student", "test_vit").parent
    home = Path.home()
    settings = {
        "output_dir": str(home / "secret-place"),
        "data": {"source": "hub", "name": "org/data"},
        "teachers": [{"weights": str(home / "teachers" / "big-one")}, {"weights": "/mnt/disk/other"}],
        "kd": {"type": "dynamic", "temperature": 3.5},
    }
    (folder / "config.yaml").write_text(Config.model_validate(settings).to_yaml())
    summary = {
        "seed": 7, "epochs": 3, "val_images": 500, "val_accuracy": 0.5, "final_test_accuracy": 0.25,
        "teachers": [{"name": "<script>x</script>|y", "val_accuracy": 0.75}, {"name": "plain"}],
        "evaluation": {"val": {"accuracy": 0.5, "ece": 0.125, "top5": 0.875, "brier": "wild"}},
    }  # fmt: skip
    write_json(folder / "summary.json", summary)
    write_json(folder / "student" / "metrics.json", {"val/accuracy": 0.5, "val/auroc": 0.625, "val/loss_ce": 1.5})
    return folder


def render(run: Path, export: Path, kind: str = "timm", repo: str | None = None) -> ModelCard:
    config = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    data = {"fingerprint": "f00d", "train_images": 4000, "val_images": 500}
    loaded = models.load_export(export)
    return ModelCard(card.render(kind, loaded, card.Lineage(export, run, config, data), 0.0, "40 images", repo))


def test_the_card_says_what_the_run_measured(run):
    found = render(run, run / "student")
    figures = {(r.dataset_split, r.metric_type): r.metric_value for r in found.data.eval_results}
    assert figures == {("validation", "accuracy"): 0.5, ("validation", "roc_auc"): 0.625, ("test", "accuracy"): 0.25}
    assert found.data.library_name == "timm" and found.data.datasets == ["org/data"] and found.data.license is None
    for line in (
        "|  | validation | test |",
        "| accuracy | 50.00% | 25.00% |",
        "| top-5 accuracy | 87.50% |  |",
        r"| calibration error (ECE, 15 bins) | 0.1250 |  |",
        "| cross-entropy (nats) | 1.5000 |  |",
        "| fingerprint of the data | f00d |",
        "| training images | 4000 |",
        "| seed | 7 |",
        "| plain | unknown |",
        r"| &lt;script&gt;x&lt;/script&gt;\|y | 75.00% |",
        "method `dynamic` of knowledge distillation, from 2 teacher(s)",
        "  temperature: 3.5",
        f"torch {torch.__version__.split('+')[0]}",
    ):
        assert line in found.content, line
    assert "Brier" not in found.content
    assert re.search(r"\| code that exported it \(git\) \| ([0-9a-f]{40}|unknown)", found.content)


def test_the_card_contains_no_paths(run):
    text = render(run, run / "student").content
    assert "weights: big-one" in text and "weights: other" in text
    assert str(Path.home()) not in text and "/mnt/disk" not in text and "secret-place" not in text
    assert str(run.parent) not in text


def test_metrics_of_another_checkpoint_are_not_used(run):
    other = make_student(run / "checkpoints" / "latest" / "student", "test_vit")
    write_json(other / "metrics.json", {"val/accuracy": 0.125})
    write_json(run / "evaluation-test.json", {"accuracy": 0.75, "checkpoint_path": str(run / "student")})
    assert "| accuracy | 12.50% |" in render(run, other).content
    assert "| accuracy | 50.00% | 75.00% |" in render(run, run / "student").content


def test_a_card_without_any_origin(written):
    text = (written["test_vit"] / "onnx" / "README.md").read_text()
    assert "No metrics are known" in text and "| data | unknown |" in text and "a method that is not known" in text
    assert ModelCard(text).data.library_name == "onnx"


# ------------------------------------------------------------------------------------------ the command line


def test_the_script_exports_beside_the_run_and_checks_on_its_data(tmp_path, capsys):
    settings = {
        "data": {"source": "digits"}, "cache": {"dir": str(tmp_path / "cache")}, "kd": {"type": kd_methods.LABEL_ONLY},
    }  # fmt: skip
    config = Config.model_validate(settings)
    fingerprint = load_data(config.data, model_sizes=[32], cache_dir=config.cache.folder).fingerprint
    run = make_student(tmp_path / "run-1" / "student", "cifar_resnet20", data=fingerprint).parent
    write_json(run / "summary.json", {"run_id": "1"})
    (run / "config.yaml").write_text(config.to_yaml())
    evaluate_kd.main(["--checkpoint", str(run), "--export", "timm,hub", "--repo", "org/digits"])
    printed = capsys.readouterr().out
    assert re.search(r"timm: written to .*run-1/export/timm; .* on \d+ images of the val split", printed)
    assert "stock timm has no cifar_resnet20" in printed and "--export program runs without it" in printed
    assert "a dry run: --push would send to the Hub's org/digits:\n  README.md" in printed
    assert sorted(path.name for path in (run / "export" / "hub").iterdir()) == sorted(write.FILES["hub"])
    content = (run / "export" / "hub" / "README.md").read_text()
    assert 'create_model("hf-hub:org/digits"' in content and "| data | digits |" in content
    kept = json.loads((run / "export" / "timm" / "config.json").read_text())
    assert kept["extra"] == {"image_size": 32, "data_fingerprint": fingerprint} and f"| {fingerprint} |" in content
    evaluate_kd.main(["--checkpoint", str(run / "export" / "timm"), "--no-wandb"])  # an export is a student again
    assert (run / "evaluation-val.json").is_file()
    config_file = run / "student" / "config.json"  # other images by now: their facts are not the student's origin
    write_json(config_file, {**read_object(config_file), "extra": {"image_size": 32, "data_fingerprint": "f00d"}})
    evaluate_kd.main(["--checkpoint", str(run), "--export", "timm"])
    printed = capsys.readouterr().out
    assert "random images, since the data cannot be used: the data are not those that the student" in printed
    content = (run / "export" / "timm" / "README.md").read_text()
    assert "| fingerprint of the data | f00d |" in content and "| training images | unknown |" in content


def test_without_its_data_random_images_are_used(written, tmp_path, capsys):
    out = tmp_path / "out"
    evaluate_kd.main(["--checkpoint", str(written["test_vit"] / "student"), "--export=timm", f"--out={out}"])
    printed = capsys.readouterr().out
    assert "note: checked on random images, since the data cannot be used: --config: needed here" in printed
    assert "on 1,000 random images" in printed and sorted(path.name for path in out.iterdir()) == sorted(
        write.FILES["timm"]
    )
    assert "1,000 random images" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--export=tflite", "--export: unknown kind 'tflite', allowed: timm, onnx, program, hub"),
        ("--export=timm --images=x", "not allowed with argument"),
        ("--out=x", "--out: belongs to --export"),
        ("--repo=a/b", "--repo: belongs to --export hub"),
        ("--export=timm --push", "--push: belongs to --export hub"),
        ("--export=hub", "--repo: is None: ORG/NAME is needed"),
        ("--export=hub --repo=name", "--repo: is 'name': ORG/NAME is needed"),
        ("--export=hub --repo=a/b/c", "--repo: is 'a/b/c'"),
        ("--export=hub --repo=a/b --push", "--push: no credentials for the Hub; run 'hf auth login' or set HF_TOKEN"),
        ("--export=timm --out=kd_core", "--out: kd_core would be replaced, but holds"),
        ("--export=timm --out=README.md", "--out: README.md would be replaced"),
    ],
)
def test_bad_switches(written, monkeypatch, words, text):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=re.escape(text)):
        evaluate_kd.main(["--checkpoint", str(written["test_vit"] / "student"), *words.split()])


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_packages_are_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"--export onnx: .*{package}.*pip install -r requirements-export.txt"):
        evaluate_kd.parse(["--checkpoint", "x", "--export", "onnx"])
    evaluate_kd.parse(["--checkpoint", "x", "--export", "timm,program"])


# -------------------------------------------------------------------------------------------------- the Hub


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as taking a small folder needs; it remembers what it was asked."""

    asked: list[tuple[str, str, str | None]]
    files: dict[str, bytes]

    def do_POST(self):  # noqa: N802
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self.read_chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.path, body.decode(), self.headers.get("Authorization")))
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{self.server.address}/org/digits/commit/1", "commitOid": "1", "success": True}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        elif self.path.endswith("/repos/create"):
            answer = {"url": f"{self.server.address}/org/digits", "id": "org/digits"}
        else:
            answer = {"warnings": [], "errors": []}  # validate-yaml
        self.reply(answer)

    def do_GET(self):  # noqa: N802
        self.asked.append((self.path, "", self.headers.get("Authorization")))
        self.reply({"sha": "0" * 40, "siblings": [], "id": "org/digits"})

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_pushing_sends_the_export_and_nothing_else(written, tmp_path, monkeypatch, capsys):
    handler = type("Handler", (Hub,), {"asked": [], "files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    out, student = tmp_path / "out", written["test_vit"] / "student"
    huggingface_hub.close_session()
    try:
        words = ["--checkpoint", str(student), "--export=hub", "--repo=org/digits", "--push", f"--out={out}"]
        evaluate_kd.main(words)
    finally:
        huggingface_hub.close_session()
        server.shutdown()
    assert f"pushed to {server.address}/org/digits" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == handler.files
    assert set(handler.files) == set(write.FILES["hub"])
    [created] = [json.loads(body) for path, body, _ in handler.asked if path.endswith("/repos/create")]
    private = created.get("private") is True or created.get("visibility") == "private"
    assert private
    tokens = {token for path, _, token in handler.asked if re.search("/(create|preupload/main|commit/main)$", path)}
    assert tokens == {"Bearer hf_of_the_test"}


def test_a_hub_that_cannot_be_reached_is_one_message(written):
    """This process is offline."""
    with pytest.raises(UserError, match="--push: org/x: the Hub does not take it: .*; the export is complete in "):
        write.push(written["test_vit"] / "timm", "org/x")


@pytest.mark.slow
def test_stock_timm_loads_it_in_an_environment_of_its_own(written, pixels, tmp_path):
    """A new virtual environment with timm, torch and what they need; takes a network or a local index."""
    home = written["test_vit"]
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if re.match("(timm|torch)==", line)]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *pins], check=True)
    views = Views(models.load_export(home / "student").preprocess, 32, Augmentation(4, True))
    torch.save([views.clean(pixels), student_logits(home, pixels)], tmp_path / "there.pt")
    code = (
        "import timm, torch\nimages, logits = torch.load('there.pt')\n"
        f"model = timm.create_model('local-dir:{home / 'timm'}', pretrained=True).eval()\n"
        "with torch.inference_mode():\n    print(float((model(images) - logits).abs().max()))\n"
        "print(model.pretrained_cfg['label_names'], model.pretrained_cfg['mean'])"
    )
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    difference, described = done.stdout.splitlines()
    assert float(difference) < 1e-5 and described == f"{NAMES} [0.5, 0.4, 0.3]"
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True).stdout
    assert "timm" in listed and "accelerate" not in listed and "kd" not in listed.split()
