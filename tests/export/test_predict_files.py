"""Your own images are classified as evaluation classifies the same pixels."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_students import NAMES, make_student

import evaluate_kd
import kd_methods
from kd_core.config import Config
from kd_core.data.dataset import load_data
from kd_core.data.views import Augmentation, Views
from kd_core.errors import UserError
from kd_core.export import predict_files
from kd_core.loop.processes import create_accelerator
from kd_core.models import build as models
from kd_core.models.predict import Images, Predictor
from kd_core.run.script import run_script

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return make_student(tmp_path_factory.mktemp("pictures") / "student", "test_vit")


def noise(height: int, width: int, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def probabilities(student: Path, *files: Path) -> torch.Tensor:
    """float32 [n,10], by label."""
    found, unreadable = predict_files.predict(models.load_export(student), files, top=10, device=CPU)
    assert not unreadable and [one.file for one in found] == list(files)
    by_name = [dict(zip(one.classes, one.probabilities, strict=True)) for one in found]
    return torch.tensor([[one[name] for name in NAMES] for one in by_name])


@pytest.mark.parametrize("name", ["test_vit", "cifar_resnet20"])
@pytest.mark.parametrize("resize", [32, 36])
def test_validation_images_as_files_get_evaluations_logits(tmp_path, name, resize):
    folder = make_student(tmp_path / "student", name, resize=resize)
    loaded = models.load_export(folder)
    config = Config.model_validate({"data": {"source": "digits"}, "kd": {"type": kd_methods.LABEL_ONLY}})
    data = load_data(config.data, model_sizes=[32], cache_dir=tmp_path / "cache")
    accelerator = create_accelerator("no")
    views = Views(loaded.preprocess, data.image_size, Augmentation(2, False))
    logits = Predictor(accelerator, config)(loaded.model, Images(data.val, accelerator.device, "host"), views)
    files = []
    for row in data.val.rows[:20].tolist():
        files.append(tmp_path / f"{row:04}.png")
        Image.fromarray(data.val.images[row].numpy()).save(files[-1])
    assert (probabilities(folder, *files) - logits[:20].softmax(1)).abs().max() < 1e-6


def test_images_of_every_kind_are_decoded_as_viewers_show_them(student, tmp_path):
    plain = noise(32, 32)
    plain.save(tmp_path / "plain.png")
    expected = probabilities(student, tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    plain.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste(plain, (16, 0))
    wide.save(tmp_path / "wide.bmp")
    plain.save(tmp_path / "lossless.webp", lossless=True)
    plain.save(tmp_path / "without_suffix", format="TIFF")
    for name in ("turned.png", "wide.bmp", "lossless.webp", "without_suffix"):
        assert torch.equal(probabilities(student, tmp_path / name), expected), name

    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:] = 255
    layered = plain.copy()
    layered.putalpha(Image.fromarray(mask))
    layered.save(tmp_path / "transparent.png")
    white = np.asarray(plain).copy()
    white[:8] = 255
    Image.fromarray(white).save(tmp_path / "white.png")
    gray = plain.convert("L")
    gray.save(tmp_path / "gray.png")
    gray.convert("RGB").save(tmp_path / "gray_rgb.png")
    for one, other in (("transparent.png", "white.png"), ("gray.png", "gray_rgb.png")):
        assert torch.equal(probabilities(student, tmp_path / one), probabilities(student, tmp_path / other)), one


def test_a_folder_is_read_in_batches_sorted_without_other_files(student, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_files, "BATCH", 2)
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    names = ["a.png", "b/deep/c.png", "b/x.png", "z.png"]
    for seed, name in enumerate([*names, ".hidden/a.png", ".a.png"]):
        noise(40, 50, seed=seed).save(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    (tmp_path / "b" / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    bomb = Image.new("1", (9001, 9000))
    bomb.save(tmp_path / "c.png")
    (tmp_path / "d.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    files = predict_files.files_in(tmp_path)
    assert len(files) == 8 and files == sorted(files)
    found, unreadable = predict_files.predict(models.load_export(student), files, top=3, device=CPU)
    assert [one.file for one in found] == [tmp_path / name for name in names]
    assert sorted(file.name for file in unreadable) == ["c.png", "cut.png", "d.eps", "notes.txt"]
    assert "9001x9000 pixels are more than" in unreadable[tmp_path / "c.png"]
    one_by_one = [
        predict_files.predict(models.load_export(student), [one.file], top=3, device=CPU)[0][0] for one in found
    ]
    assert [one.classes for one in found] == [one.classes for one in one_by_one]


def test_the_script_prints_and_writes_a_table(student, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    noise(40, 50).save(folder / "a.png")
    noise(30, 50, seed=1).save(folder / "\x1b[31mred\n.png")
    (folder / "x.txt").write_text("no picture")
    table = tmp_path / "new" / "table.csv"
    words = ["--checkpoint", str(student), "--images", str(folder), "--top", "10", "--csv", str(table)]
    evaluate_kd.main(words)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out and "\\x1b[31mred\\n.png\n" in printed.out
    assert "2 images written to" in printed.out
    assert printed.err.startswith("left out, since they cannot be read (1):\n") and "x.txt: cannot" in printed.err
    shares = [float(share) for share in re.findall(r"^ +([\d.]+)%  ", printed.out, re.MULTILINE)]
    assert len(shares) == 20 and sum(shares) == pytest.approx(200, abs=0.2)
    assert shares[:10] == sorted(shares[:10], reverse=True)

    rows = list(csv.DictReader(table.open(newline="", encoding="utf-8")))
    assert list(rows[0]) == ["file", *(f"{kind}_{k}" for k in range(1, 11) for kind in ("class", "probability"))]
    assert len(rows) == 2 and {row["class_1"] for row in rows} <= {"'=cat", *NAMES[1:]}
    assert {"'=cat"} <= set(rows[0].values()) and "=cat" not in rows[0].values()
    found, _ = predict_files.predict(models.load_export(student), [folder / "a.png"], top=2, device=CPU)
    row = next(row for row in rows if row["file"] == str(folder / "a.png"))
    assert float(row["probability_2"]) == pytest.approx(found[0].probabilities[1], abs=1e-6)
    assert not [path for path in table.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_no_cell_is_a_formula(tmp_path, text):
    predict_files.write_csv(tmp_path / "a.csv", [predict_files.Prediction(Path(text), [text], [0.5])])
    [_, cells] = csv.reader((tmp_path / "a.csv").open(newline=""))
    assert cells[0][0] == cells[1][0] == "'" and cells[2] == "0.500000"


def test_names_that_are_no_text_can_be_written(tmp_path):
    predict_files.write_csv(tmp_path / "a.csv", [predict_files.Prediction(Path("\udcff.png"), ["\ud800"], [0.5])])
    assert "\\udcff.png,\\ud800," in (tmp_path / "a.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--images=nowhere", "--images: no such file or folder: nowhere"),
        ("--images={empty}", "--images: there is no file in"),
        ("--images=README.md", "--images: none of 1 file(s) can be read as an image:\n  README.md: cannot identify"),
        ("--images=x --top=0", "--top: 0: a number of classes is needed"),
        ("--images=x --top=five", "--top: five"),
        ("--images=x --csv=tests", "--csv: tests is a folder"),
        ("--top=3", "--top: belongs to --images"),
        ("--csv=x", "--csv: belongs to --images"),
        ("--images=x --dump-logits=x.safetensors", "not allowed with argument"),
    ],
)
def test_bad_input(student, tmp_path, words, text):
    with pytest.raises(UserError, match=re.escape(text)):
        evaluate_kd.main(["--checkpoint", str(student), *words.format(empty=tmp_path).split()])


@pytest.mark.parametrize("size", [0, -1, 10**6, "32", 1.5, True, [32]])
def test_a_wild_stored_size_is_refused(student, tmp_path, size):
    config = json.loads((student / "config.json").read_text())
    config["extra"]["image_size"] = size
    for file in student.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    noise(8, 8).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="config.json: extra.image_size: is "):
        evaluate_kd.main(["--checkpoint", str(tmp_path), "--images", str(tmp_path / "a.png")])


def test_an_export_of_another_project_has_its_own_size_and_numbers_as_class_names(student, tmp_path):
    config = json.loads((student / "config.json").read_text())
    del config["extra"], config["label_names"], config["pretrained_cfg"]["label_names"]
    for file in student.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    noise(8, 8).save(tmp_path / "a.png")
    [[one], _] = predict_files.predict(models.load_export(tmp_path), [tmp_path / "a.png"], top=99, device=CPU)
    assert sorted(one.classes) == [str(number) for number in range(10)] and sum(one.probabilities) == pytest.approx(1)


def test_weights_that_are_not_finite_are_one_message(student, tmp_path):
    noise(8, 8).save(tmp_path / "a.png")
    loaded = models.load_export(student)
    next(loaded.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="test_vit: gives probabilities that are not finite"):
        predict_files.predict(loaded, [tmp_path / "a.png"], top=5, device=CPU)


def test_exit_statuses(student, tmp_path, monkeypatch, capsys):
    """0 if any picture was read, 2 if none, with one message."""
    (tmp_path / "x.txt").write_text("no picture")
    monkeypatch.setattr("sys.argv", ["evaluate_kd.py", "--checkpoint", str(student), "--images", str(tmp_path)])
    with pytest.raises(SystemExit, match="^2$"):
        run_script(evaluate_kd.main, "evaluate_kd.py")
    printed = capsys.readouterr()
    assert printed.err.startswith("evaluate_kd.py: --images: none of 1 file(s)") and not printed.out
    noise(8, 8).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match="^0$"):
        run_script(evaluate_kd.main, "evaluate_kd.py")
    printed = capsys.readouterr()
    assert "left out" in printed.err and printed.out.count("%") == 5
