"""A folder of photos, from nothing to a report with a test accuracy, by the shipped configuration."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from warm_process import WarmProcess

import evaluate_kd
import train_kd
from kd_core.config import read_yaml
from kd_core.files import read_object

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/photos.yaml"
CLASSES = {"apple": "red", "brick": "brown", "grass": "green", "sea": "blue", "snow": "white", "night": "black"}
SHOTS = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of color and noise, of mixed sizes, upright and wide, as JPEG and PNG."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, color in CLASSES.items():
        (folder / name).mkdir()
        base = np.array(Image.new("RGB", (1, 1), color), dtype=np.float64)
        for shot in range(SHOTS):
            height, width = generator.integers(48, 200, 2)
            noise = generator.normal(0, 25, (height, width, 1)) + generator.normal(0, 25, 3)
            picture = Image.fromarray((base + noise).clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"DSC_{shot:04d}.{'jpg' if shot % 3 else 'png'}")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    """The run folder that the command leaves, with fewer epochs than the configuration asks for."""
    home = photos.parent / "home"
    words = [
        "train_kd.py", "--config", CONFIG, f"--data.path={photos}", "--training.max_epochs=4",
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}", "--no-wandb",
    ]  # fmt: skip
    process = WarmProcess(words)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert "test: 22 images cut from training" in printed and "test accuracy" in printed
    [folder] = (home / "runs").glob("photos-*")
    return folder


def test_one_short_configuration_is_enough() -> None:
    assert len((ROOT / CONFIG).read_text().splitlines()) <= 10
    assert read_yaml(ROOT / CONFIG)["data"]["test_size"] == 0.15


def test_it_ends_with_a_test_accuracy_and_a_report(run: Path) -> None:
    summary = read_object(run / "summary.json")
    assert summary["final_test_accuracy"] > 0.5  # six colors; by chance 0.17
    assert round(summary["final_test_accuracy"] * 22) / 22 == pytest.approx(summary["final_test_accuracy"])
    assert read_object(run / "report" / "evaluation-test.json")["total"] == 22
    assert "Test split" in (run / "report" / "index.html").read_text()


def test_evaluation_finds_the_test_images_again(run: Path) -> None:
    evaluate_kd.main(["--checkpoint", str(run), "--split", "test", "--no-wandb"])
    found = read_object(run / "evaluation-test.json")
    assert found["total"] == 22
    assert found["accuracy"] == read_object(run / "summary.json")["final_test_accuracy"]


def test_its_logits_serve_as_a_teacher(run: Path, photos: Path) -> None:
    """One tensor holds the rows of all three splits, and each split finds its own."""
    file = run.parent.parent / "photos.safetensors"
    evaluate_kd.main(["--checkpoint", str(run), "--dump-logits", str(file), "--no-wandb"])
    with safe_open(file, framework="pt") as opened:
        assert {name: len(opened.get_tensor(name)) for name in opened.keys()} == {"train": SHOTS * len(CLASSES)}  # noqa: SIM118
    train_kd.main([
        "--config", CONFIG, f"--data.path={photos}", "--training.max_epochs=1", "--data.store_size=73", "--name=taught",
        f"--output_dir={run.parent}", f"--cache.dir={run.parent.parent / 'cache'}", "--no-wandb", "--kd.type=average",
        f"--teachers=[{{logits: {file}}}]", "--model.name=cifar_resnet8",
    ])  # fmt: skip
    [taught] = run.parent.glob("taught-*")
    evaluation = read_object(taught / "report" / "evaluation-test.json")
    assert evaluation["teachers"][0]["accuracy"] == read_object(run / "summary.json")["final_test_accuracy"]
