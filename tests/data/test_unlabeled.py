"""Images without labels: where they come from, how batches mix both kinds, and losses that can do without labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image
from small_students import TEACHER_RECIPE

import kd_methods
import train_kd
from kd_core.config import Config, DataConfig, Layer, resolve
from kd_core.data.dataset import Data, load_data
from kd_core.data.plan import EpochPlan, Sampler
from kd_core.data.views import Augmentation
from kd_core.errors import UserError
from kd_core.run.folder import read_metrics
from kd_methods import StudentOutput, TeacherOutputs, feature_losses, logit_losses

CPU = torch.device("cpu")


def load(tmp_path: Path, **settings) -> Data:
    config = DataConfig.model_validate({"source": "digits", **settings})
    return load_data(config, model_sizes=[32], cache_dir=tmp_path / "cache", show_progress=False)


def photos(folder: Path, count: int, side: int) -> Path:
    """Images without any folder of a class."""
    (folder / "deep").mkdir(parents=True)
    for number in range(count):
        place = folder / ("deep" if number % 2 else "")
        Image.new("RGB", (side, side), (5 * number, 0, 200)).save(place / f"{number}.png")
    return folder


def clean_config() -> DataConfig:
    return DataConfig.model_validate({"source": "digits"})


def check_pool(data: Data, count: int) -> None:
    """Training images as they were, and `count` more without labels."""
    pool = data.pool
    assert pool is not None and len(pool) == len(data.train) + count
    assert pool.labels[data.train.rows].equal(data.train.labels[data.train.rows])
    assert pool.images[data.train.rows].equal(data.train.images[data.train.rows])
    without = pool.rows[pool.labels[pool.rows] == -1]
    assert len(without) == count and not torch.isin(without, data.train.rows).any()
    if data.val and data.val.fingerprint == pool.fingerprint:
        assert not torch.isin(without, data.val.rows).any()


# ------------------------------------------------------------------------------------------------ their sources


def test_the_rest_of_training(tmp_path):
    data = load(tmp_path, train_size=200, unlabeled={})
    whole = load(tmp_path)
    check_pool(data, len(whole.train) - 200)
    assert data.fingerprint == whole.fingerprint and data.pool.fingerprint == data.train.fingerprint
    assert (data.mean, data.std) == (load(tmp_path, train_size=200).mean, load(tmp_path, train_size=200).std)
    assert f"unlabeled: {len(whole.train) - 200:,} images, 50% of each batch" in "".join(data.notes)


def test_folders_of_images_with_noisy_labels_beside(tmp_path):
    folder = photos(tmp_path / "photos", 5, 32)
    (folder / "notes.txt").write_text("nothing")
    more = {"unlabeled": {"source": "imagefolder", "path": str(folder)}, "label_noise": {"rate": 0.3}}
    data = load(tmp_path, **more)
    check_pool(data, 5)
    last = data.pool.images[-5:]
    assert sorted(last[:, 0, 0, 0].tolist()) == [0, 5, 10, 15, 20] and (last[..., 2] == 200).all()
    clean = load(tmp_path)
    config = DataConfig.model_validate({"source": "digits", **more})
    assert data.fingerprint == clean.fingerprint == data.fingerprint_of(clean_config())
    assert data.fingerprint_of(config) != data.fingerprint  # other images make another run
    assert data.truth.labels[data.train.rows].equal(clean.train.labels[data.train.rows])
    assert data.truth.rows.equal(data.train.rows) and data.truth.fingerprint == data.pool.fingerprint
    assert not data.train.labels.equal(clean.train.labels) and data.train.images.equal(clean.train.images)
    Image.new("RGB", (32, 32), (77, 0, 200)).save(folder / "0.png")
    assert load(tmp_path, **more).fingerprint_of(config) != data.fingerprint_of(config)


@pytest.mark.parametrize("labels", [False, True])
def test_parquet_with_and_without_labels(tmp_path, labels):
    images = [Image.new("RGB", (32, 32), (number, 0, 0)) for number in range(6)]
    columns, kinds = {"img": images}, {"img": ImageColumn()}
    if labels:
        columns["label"], kinds["label"] = [0, 1] * 3, ClassLabel(names=["x", "y"])  # other classes
    (tmp_path / "more").mkdir()
    Dataset.from_dict(columns, features=Features(kinds)).to_parquet(tmp_path / "more" / "train-00000-of-00001.parquet")
    data = load(tmp_path, unlabeled={"source": "parquet", "path": str(tmp_path / "more")})
    check_pool(data, 6)
    assert data.class_names == [str(digit) for digit in range(10)]


def test_images_of_validation_and_test_are_refused(tmp_path):
    """Else a student would be distilled on the images that it is tested on."""
    for split, count in (("train", 8), ("test", 4)):
        for number in range(count):
            place = tmp_path / "data" / split / f"kind{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (9 * number, len(split), 0)).save(place / f"{number}.png")
    own = {"source": "imagefolder", "path": str(tmp_path / "data"), "val_size": 0}
    for place, wanted in (
        ("data", r"data.unlabeled.path: holds 4 images of split 'test' of .*data, such as .*test/kind0/0.png"),
        ("data/test", "holds 4 images of split 'test'"),
    ):
        with pytest.raises(UserError, match=wanted):
            load(tmp_path, **own, unlabeled={"source": "imagefolder", "path": str(tmp_path / place)})
    check_pool(load(tmp_path, **own, unlabeled={"source": "imagefolder", "path": str(tmp_path / "data/train")}), 8)
    own["path"] = str(tmp_path / "data/train")  # validation and test are cut from the same folder
    for cut in ({"val_size": 2}, {"test_size": 2}):
        with pytest.raises(UserError, match="data.unlabeled: 2 of its images are among the 2 that are cut from"):
            load(tmp_path, **{**own, **cut}, unlabeled={"source": "imagefolder", "path": own["path"]})


def test_another_size_is_said_and_resized_on_demand(tmp_path):
    more = {"source": "imagefolder", "path": str(photos(tmp_path / "photos", 3, 40))}
    wanted = "data.unlabeled: its images are 40 pixels wide and high, those of training 32; data.unlabeled.resize=true"
    with pytest.raises(UserError, match=wanted):
        load(tmp_path, unlabeled=more)
    check_pool(load(tmp_path, unlabeled={**more, "resize": True}), 3)


def test_mistakes_name_the_key(tmp_path):
    (tmp_path / "empty").mkdir()
    for settings, message in (
        ({"source": "imagefolder", "path": str(tmp_path / "none")}, r"data.unlabeled.path: .*none: no such folder"),
        ({"source": "imagefolder", "path": str(tmp_path / "empty")}, r"data.unlabeled.path: .*empty: has no images"),
        ({"source": "digits", "split": "more"}, r"data.unlabeled.split: .*'more'"),
    ):
        with pytest.raises(UserError, match=message):
            load(tmp_path, unlabeled=settings)
    for settings, message in (
        ({"unlabeled": {}}, "unlabeled.source: 'rest' are the images that data.train_size leaves out"),
        ({"unlabeled": {"source": "parquet"}}, "source 'parquet' needs unlabeled.path"),
        ({"unlabeled": {"source": "digits", "path": "x"}}, "path: source 'digits' has none"),
        ({"unlabeled": {"source": "digit"}}, "data.unlabeled.source: is 'digit'.*rest"),
        ({"unlabeled": {"source": "digits", "share": 1.5}}, "data.unlabeled.share: is 1.5"),
    ):
        with pytest.raises(UserError, match=message):
            resolve([Layer("x.yaml", {"data": settings})])


def config(kd: dict, **more) -> Config:
    data = {"source": "digits", "train_size": 200, "unlabeled": {}, **more.pop("data", {})}
    teachers = [{"model": "cifar_resnet8", "weights": "pretrained"}]
    return resolve([Layer("x.yaml", {"data": data, "kd": kd, "teachers": teachers, **more})]).config


@pytest.mark.parametrize(
    ("kd", "needs"),
    [
        ({"type": "dynamic"}, "kd.type 'dynamic'"),
        ({"type": "average", "loss": "dkd"}, "kd.loss 'dkd'"),
        ({"type": "average", "correct_labels": "swap"}, "kd.correct_labels 'swap'"),
        ({"type": "average", "features": [{"loss": "rkd"}, {"loss": "crd"}]}, r"kd.features\[1\], loss 'crd'"),
    ],
)
def test_what_needs_labels_is_refused(kd, needs):
    with pytest.raises(UserError, match=f"data.unlabeled: {needs} needs the label of every image"):
        config(kd)
    shapes = {"student_shapes": [(4,)], "teacher_shapes": [[(4,)]], "num_classes": 10}
    with pytest.raises(ValueError, match=f"{needs} needs the label of every image"):
        kd_methods.build(kd, unlabeled=True, **(shapes if "features" in kd else {}))


def test_what_cannot_be_beside_them():
    average = {"type": "average"}
    with pytest.raises(UserError, match="mixup and cutmix mix labels"):
        config(average, augment={"mixup": {}})
    with pytest.raises(UserError, match="share: is 1, so no image has a label, and kd.type 'baseline'"):
        config({"type": "baseline"}, data={"unlabeled": {"share": 1.0}})
    with pytest.raises(UserError, match="training.compare_with_baseline: the student without teachers learns from lab"):
        config(average, data={"unlabeled": {"share": 1.0}}, training={"compare_with_baseline": True})
    assert config(average).kd.needing_labels() == []


# ------------------------------------------------------------------------------------------------- batches of both


LABELED, WITHOUT = torch.arange(90), torch.arange(100, 140)


def plan(rank: int = 0, processes: int = 1, *, share: float = 0.4, epoch: int = 0) -> EpochPlan:
    sampler = Sampler(LABELED, None, WITHOUT, share)
    return EpochPlan(sampler, CPU, seed=0, epoch=epoch, batch_size=20, rank=rank, world_size=processes,
                     augmentation=Augmentation(4, True))  # fmt: skip


def test_each_process_has_as_many_of_both_kinds():
    whole = plan()
    assert len(whole) == 7  # 12 of 90 in each step
    for rank in range(2):
        own = plan(rank, 2)
        for step in range(7):
            rows = own.batch(step, CPU).rows
            assert (rows < 90).sum() == 6 and (rows >= 100).sum() == 4
    shown = whole.whole(CPU).rows.flatten()
    assert shown[shown < 90].bincount().max() == 1
    both = [plan(rank, 2).whole(CPU).rows for rank in range(2)]
    assert torch.cat(both, 1).sort(1).values.equal(whole.whole(CPU).rows.sort(1).values)


def test_epochs_go_on_where_the_last_ended():
    """Over five epochs of 56 each image without a label comes 7 times, in every epoch with views of its own."""
    counts = torch.zeros(140, dtype=torch.long)
    for epoch in range(5):
        found = plan(epoch=epoch).whole(CPU)
        rows, views = found.rows.flatten(), found.ids.flatten()
        counts += rows.bincount(minlength=140)
        again = [row for row in WITHOUT.tolist() if (rows == row).sum() == 2]
        assert len(again) >= 10 and sum(len(views[rows == row].unique()) == 2 for row in again) > 0.9 * len(again)
    assert (counts[100:] == 7).all()


def test_none_or_all_of_a_batch(tmp_path):
    everything = plan(share=1.0)
    assert len(everything) == 2 and (everything.whole(CPU).rows >= 100).all()
    words = run_words(tmp_path, "--data.batch_size=3", "--data.unlabeled={share: 0.1}")
    with pytest.raises(UserError, match="data.unlabeled.share: 0.1 of 3 images is 0"):
        train_kd.main(words)
    for more, message in (
        (["--data.batch_size=800"], "data.batch_size: 800 holds more than the 320 labeled images of training"),
        (["--data.batch_size=640", "--training.accumulate=640"], "data.unlabeled.share: 0.5 of 1 images"),
        (["--data.batch_size=40", "--training.accumulate=80"], "training.accumulate: 80 equal parts cannot be made"),
    ):
        with pytest.raises(UserError, match=message):
            train_kd.main(run_words(tmp_path, *more))


def test_more_images_in_a_batch_than_labels(tmp_path):
    """The trial pass before training takes images of both kinds."""
    more = ["--data.train_size=40", "--data.batch_size=64", "--data.unlabeled={share: 0.75}"]
    more.append("--kd.features=[{loss: rkd}]")
    train_kd.main(run_words(tmp_path, *more, "--check"))


# ---------------------------------------------------------------------------------------------------- the losses


def test_the_label_term_is_the_mean_over_labeled_images():
    generator = torch.Generator().manual_seed(0)
    student, teachers = torch.randn(6, 4, generator=generator), torch.randn(2, 6, 4, generator=generator)
    student.requires_grad_()
    labels = torch.tensor([1, -1, 3, -1, -1, 0])
    method = kd_methods.build({"type": "average", "hard_weight": 0.7}, label_smoothing=0.1, unlabeled=True)
    _, metrics = method(StudentOutput(student), TeacherOutputs(teachers), labels)
    some = labels >= 0
    expected = torch.nn.functional.cross_entropy(student[some], labels[some], label_smoothing=0.1)
    torch.testing.assert_close(metrics["loss_ce"], expected.detach())
    loss, _ = method(StudentOutput(student), TeacherOutputs(teachers), torch.full((6,), -1))
    plain = kd_methods.build({"type": "average", "hard_weight": 0.0})
    torch.testing.assert_close(loss, plain(StudentOutput(student), TeacherOutputs(teachers), labels.clamp(min=0))[0])
    with pytest.raises(IndexError):  # without the setting, -1 is a mistake
        kd_methods.build({"type": "average"})(StudentOutput(student), TeacherOutputs(teachers), labels)


def test_classes_say_truly_whether_they_use_labels():
    """Losses and weightings that claim not to need labels give the same for any labels, and the others do not."""
    generator = torch.Generator().manual_seed(1)
    student, teachers = torch.randn(8, 5, generator=generator), torch.randn(3, 8, 5, generator=generator)
    first, second = torch.arange(8) % 5, (torch.arange(8) + 2) % 5

    def values(kd: dict, labels: torch.Tensor) -> torch.Tensor:
        errors = torch.rand(3, 20, generator=torch.Generator().manual_seed(2)) > 0.5
        method = kd_methods.build(kd, num_classes=5, teacher_errors=errors)
        own, others = StudentOutput(student), TeacherOutputs(teachers)
        if method.config.second_view == "required":
            own, others = own._replace(second=student.flip(1)), others._replace(second=teachers.flip(2))
        weights = method.teacher_weights(own, others, labels, 1.0)
        return torch.cat([weights.expand(3, 8), method.logit_loss(own, others, labels)])

    cases = [{"type": "average", "loss": name} for name in logit_losses.OWN]
    cases += [{"type": name} for name in kd_methods.names() if name not in ("baseline", "fixed")]
    cases.append({"type": "fixed", "weights": [0.5, 0.25, 0.25]})
    for kd in cases:
        same = torch.equal(values(kd, first), values(kd, second))
        assert same is (not kd_methods.config_class(kd["type"]).model_validate(kd).needing_labels()), kd
    used = {name for name in feature_losses.OWN if feature_losses.config_class(name).uses_labels}
    assert used == {"ca_mkd", "crd", "ofa", "sdd"}


# -------------------------------------------------------------------------------------------- through the script


def run_words(home: Path, *more: str) -> list[str]:
    recipe = home / "teacher.yaml"
    recipe.write_text(yaml.safe_dump(TEACHER_RECIPE))
    model = {"model": "cifar_resnet8", "train": str(recipe)}
    return [
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}", "--no-wandb", "--name=n", "--kd.type=average",
        f"--teachers={json.dumps([model])}", "--model={name: test_vit, img_size: 32, args: {patch_size: 16, depth: 1}}",
        "--data.train_size=320", "--data.batch_size=80", "--data.unlabeled={share: 0.5}", "--training.max_epochs=2",
        "--training.compare_with_baseline=false", "--training.log_every=1", "--evaluation.report=false", *more,
    ]  # fmt: skip


def rows_of(home: Path, name: str) -> list[dict]:
    [folder] = (home / "runs").glob(f"{name}-*")
    return read_metrics(folder / "metrics.jsonl")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Its runs/ keeps the teacher, which the first test trains."""
    return tmp_path_factory.mktemp("home")


def test_a_run_with_both_kinds(home):
    """And the run that is cut off after its first epoch ends like the one that is not."""
    cache = ("--cache.mode=fixed", "--cache.views=2")
    whole, parts = (run_words(home, *cache, f"--name={name}") for name in ("whole", "parts"))
    train_kd.main(whole)
    epochs = train_kd.epochs_of([*parts, "--fresh"])
    next(epochs)
    epochs.close()
    train_kd.main(parts)
    first, second = (rows_of(home, name) for name in ("whole", "parts"))
    assert [row.get("train/loss_total") for row in first] == [row.get("train/loss_total") for row in second]
    [last] = [row for row in first if row.get("epoch") == 2 and "train/accuracy" in row]
    assert 0 < last["train/accuracy"] <= 1 and np.isfinite(last["train/loss_label"])
    assert len([row for row in first if "train_step/step" in row]) == 16  # 40 of 320 labeled images in each


def test_no_label_at_all(home):
    train_kd.main(run_words(home, "--data.unlabeled={share: 1.0}", "--training.max_epochs=1", "--name=none"))
    [row] = [row for row in rows_of(home, "none") if "train/loss_total" in row]
    assert row["train/loss_label"] == 0 and row["train/loss_total"] > 0 and "train/accuracy" not in row
