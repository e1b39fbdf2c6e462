"""Files that somebody made to do harm: what they ask for beyond their own content is refused, in words."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import timm
import torch
from image_files import cifar_python, encoded, features, pixels, refuse, rows_of
from warm_process import WarmProcess

from kd_core import files
from kd_core.data import decoding
from kd_core.errors import UserError, printable
from kd_core.models import build as models
from kd_core.models import weights
from kd_core.models.build import create_model
from kd_core.run import artifacts, tracking
from kd_core.run import folder as checkpoints
from kd_core.run.folder import MetricsFile, RunFolder
from kd_core.teachers import load as teachers
from kd_core.teachers.logits_file import LogitsFile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


# -------------------------------------------------------------------------------------------- weights, logits, exports


def compressed(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member.filename))


def test_a_zip_bomb_is_refused_unread(tmp_path):
    torch.save({"a": torch.zeros(10**7)}, tmp_path / "plain.pt")
    compressed(tmp_path / "plain.pt", tmp_path / "bomb.pt")
    assert (tmp_path / "bomb.pt").stat().st_size < 10**5
    assert len(torch.load(tmp_path / "bomb.pt", weights_only=True)["a"]) == 10**7  # torch would unfold it
    with pytest.raises(UserError, match=r"^teachers\[0\]: .*bomb\.pt: damaged, .* or it would unpack"):
        weights.read_state_dict(tmp_path / "bomb.pt", "teachers[0]")


@pytest.mark.parametrize("read", [weights.read_state_dict, lambda path: LogitsFile(path, "here", 3)])
@pytest.mark.parametrize(
    ("length", "shape", "size"),
    [
        (None, [2**40, 2**40], 4),  # a shape whose size overflows
        (2**62, [1], 4),  # a header longer than the file
        (None, [2**40], 2**42),  # a file of holes, larger than memory
    ],
)
def test_absurd_safetensors(tmp_path, read, length, shape, size):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", length or len(header)) + header)
        if size > 4:
            file.truncate(8 + len(header) + size)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**41, limit[1]))  # whatever the machine would promise
    try:
        with pytest.raises(UserError, match=r"a\.safetensors: damaged, or not a safetensors file"):
            read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_class_names_of_an_export_are_of_bounded_length(tmp_path):
    model = create_model("cifar_resnet8", num_classes=2)
    models.export(
        model, tmp_path, architecture="cifar_resnet8", model_args={}, num_classes=2, class_names=["a", "b" * 10**6],
        preprocess=models.preprocess_of(model),
    )  # fmt: skip
    with pytest.raises(UserError, match="label_names"):
        models.load_export(tmp_path)


@pytest.mark.parametrize("text", ['{"a": ' + "1" * 10_000 + "}", f'"{"a" * files.MAX_JSON_BYTES}"'])
def test_json_is_of_bounded_size(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: damaged"):
        files.read_json(tmp_path / "a.json")


def test_downloads_are_compared_with_their_digests(tmp_path, monkeypatch):
    """The Hub's cache names them by it; timm's other files have it in their names."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "content").write_bytes(b"weights")
    blob = tmp_path / "blobs" / files.sha256_of(tmp_path / "content")
    shutil.copy(tmp_path / "content", blob)
    (tmp_path / "pytorch_model.bin").symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: str(tmp_path / name))
    assert teachers.download_from_hub("a/b", "pytorch_model.bin", "here") == tmp_path / "pytorch_model.bin"
    blob.write_bytes(b"wEights")
    with pytest.raises(UserError, match=f"here: .* damaged, its SHA-256 is not the Hub's, {blob.name}"):
        teachers.download_from_hub("a/b", "pytorch_model.bin", "here")
    assert timm.models._builder._CHECK_HASH


# -------------------------------------------------------------------------------------------------------- run folders


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with a checkpoint, and nothing beside it."""
    folder = RunFolder(tmp_path / "run")
    checkpoints.save_latest(folder, lambda path: path.mkdir(), {"w": torch.zeros(10**6)}, {"epoch": 1})
    return folder


def told(folder: RunFolder) -> str:
    """The notice with which the checkpoint is skipped."""
    notices: list[str] = []
    with pytest.raises(UserError, match="no checkpoint can be read"):
        checkpoints.load_latest(folder, notices.append)
    return "\n".join(notices)


@pytest.mark.parametrize("name", ["/dev/zero", "../../../secret", "student/missing"])
def test_a_checkpoint_names_its_own_files_alone(run, tmp_path, name):
    (tmp_path / "secret").write_text("x")
    path = run.checkpoint("latest") / "state.json"
    state = json.loads(path.read_text())
    state["checksums"][name] = files.sha256_of(tmp_path / "secret")
    path.write_text(json.dumps(state))
    assert "its list of files differs from the folder's" in told(run)


def test_a_checkpoint_does_not_unfold(run):
    latest = run.checkpoint("latest")
    compressed(latest / "training.pt", latest / "bomb")
    os.replace(latest / "bomb", latest / "training.pt")
    state = json.loads((latest / "state.json").read_text())
    state["checksums"] = {"training.pt": files.sha256_of(latest / "training.pt")}
    (latest / "state.json").write_text(json.dumps(state))
    assert "training.pt: damaged, or it would unfold" in told(run)


def test_metrics_do_not_grow_to_what_a_checkpoint_claims(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="the checkpoint expects 1099511627776 bytes"):
        MetricsFile(tmp_path / "metrics.jsonl", 2**40)
    assert (tmp_path / "metrics.jsonl").stat().st_size == 3


def test_links_in_a_run_folder_are_not_sent(tmp_path):
    """Neither a student's files nor what a copy of them would hold."""
    (tmp_path / "secret").write_text("private")
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text("{}")
    (tmp_path / "best" / "config.yaml").symlink_to(tmp_path / "secret")
    files.copy_folder(tmp_path / "best", tmp_path / "student")
    RunFolder(tmp_path).keep_best(tmp_path / "student")
    sent: list[list[str]] = []

    class Run:
        id = "ab12cd34"

        def log_artifact(self, artifact, aliases):
            sent.append(sorted(artifact.manifest.entries))
            return artifact

    for folder in (tmp_path / "student", tmp_path / "checkpoints" / "best" / "student"):
        uploads = artifacts.Uploads(Run(), False, lambda what, action: action(), patience=5)
        uploads.store(folder, {}, ["best"], final=True)
        assert uploads.settle()
    assert sent == [["config.json"]] * 2


@pytest.mark.parametrize("more", [{"config": "/etc/passwd"}, {"save_code": True}, {"dir": "/"}, {"settings": {}}])
def test_what_is_sent_later_is_as_private_as_a_run(tmp_path, more):
    folder = RunFolder(tmp_path)
    folder.write_summary(status="finished", run_id="ab12cd34")
    (tmp_path / "wandb").mkdir()
    about = dict.fromkeys(tracking.ABOUT, "x") | {"config": {}} | more
    (tmp_path / "wandb" / "about.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"about\.json: damaged"):
        tracking.send(tmp_path, print)


@pytest.mark.parametrize("names", [("..", "kd"), ("a/../../..", "kd"), ("/etc", "kd"), ("me", "..")])
def test_an_artifact_stays_in_the_cache(tmp_path, monkeypatch, names):
    class Artifact:
        type, name, version = "model", "model-x:v0", "v0"
        entity, project = names

        class manifest:
            entries = {name: type("Entry", (), {"ref": None, "size": 1}) for name in artifacts.STUDENT_FILES}

    import wandb

    monkeypatch.setattr(wandb, "Api", lambda timeout: type("Api", (), {"artifact": lambda self, name: Artifact()})())
    with pytest.raises(UserError, match="refused, it is called"):
        artifacts.download(f"a/b/c:{len(str(names))}", tmp_path / "cache", "--artifact")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02K\x01r" + struct.pack("<I", 2**30) + b".",  # room for 2**31 memories: 16 GB
        b"\x80\x02K\x01" + b"q\xffr" + struct.pack("<I", 2**28) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",
        b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"a.",
    ],
)
def test_a_cifar_file_gets_no_memory_beyond_its_size(tmp_path, content):
    folder = cifar_python(tmp_path / "cifar")
    (folder / "train").write_bytes(content)
    code = tmp_path / "read.py"
    code.write_text(
        "import sys; from pathlib import Path; from kd_core.data import cifar_python\n"
        "try: cifar_python._read_pickle(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)\n"
        # not ru_maxrss, which counts the process that started this one
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    process = WarmProcess([str(code), str(folder / "train")])
    printed, _ = process.communicate(timeout=120)
    said, kilobytes = printed.strip().splitlines()
    assert "is no CIFAR file" in said and int(kilobytes) < 1_500_000


def test_a_cifar_array_is_no_larger_than_its_file(tmp_path):
    folder = cifar_python(tmp_path / "cifar")

    class Large:
        def __reduce__(self):
            import numpy

            return numpy.ndarray, ((1000, 3072), "u1")  # uninitialized memory, for some bytes of file

    (folder / "train").write_bytes(pickle.dumps({"data": Large(), "fine_labels": [0] * 1000}, protocol=2))
    assert "'data' is larger than the file" in refuse(tmp_path, source="cifar_python", path=str(folder))


def write_parquet(folder: Path, **columns: object) -> Path:
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "train.parquet")
    return folder


def test_a_parquet_file_that_repeats_one_image_for_ever(tmp_path):
    image = pyarrow.StructArray.from_arrays(
        [pyarrow.array([encoded(pixels(0, 4))] * 200_000), pyarrow.nulls(200_000, pyarrow.string())], ["bytes", "path"]
    )
    folder = write_parquet(tmp_path / "data", image=image, label=[0, 1] * 100_000)
    assert (folder / "train.parquet").stat().st_size < 10**6
    message = refuse(tmp_path, source="parquet", path=str(folder))
    assert "claims 200,000 rows in" in message and not (tmp_path / "hf").exists()


def test_absurd_numbers_of_classes(tmp_path):
    rows = rows_of(6)
    folder = write_parquet(tmp_path / "labels", image=rows["image"], label=[0, 1, 2, 0, 1, 200_000])
    assert "200,001 classes, at most" in refuse(tmp_path, source="parquet", path=str(folder))
    folder = write_parquet(tmp_path / "claimed", **rows)
    claimed = {"label": {"num_classes": 10**9, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    about = {"info": {"features": claimed}}
    table = pyarrow.parquet.read_table(folder / "train.parquet")
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    assert "claims more than 100,000 classes" in refuse(tmp_path, source="parquet", path=str(folder))


@pytest.mark.parametrize("path", ["SECRET", "../secret.png", "/dev/zero", "fifo"])
def test_data_name_no_images_outside_their_folder(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(encoded(pixels(1)))
    rows = rows_of(6)
    rows["image"][3] = {"bytes": None, "path": path.replace("SECRET", str(tmp_path / "secret.png"))}
    folder = write_parquet(tmp_path / "data", **rows)
    os.mkfifo(folder / "fifo")
    message = refuse(tmp_path, source="parquet", path=str(folder))
    assert "1 images of the train split cannot be read" in message
    assert "there is no image" in message or "no such file" in message


@pytest.mark.parametrize("what", ["split", "file"])
def test_a_saved_data_set_names_nothing_outside_its_folder(tmp_path, what):
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows_of(6), features=features())).save_to_disk(folder)
    shutil.copytree(folder / "train", elsewhere)
    if what == "split":
        (folder / "dataset_dict.json").write_text('{"splits": ["../elsewhere"]}')
    else:
        state = json.loads((folder / "train" / "state.json").read_text())
        state["_data_files"][0]["filename"] = f"../../elsewhere/{state['_data_files'][0]['filename']}"
        (folder / "train" / "state.json").write_text(json.dumps(state))
    assert "which does not lie in it" in refuse(tmp_path, source="disk", path=str(folder))


def test_image_formats_that_run_programs_are_not_opened():
    """Pillow would give PostScript to Ghostscript."""
    eps = io.BytesIO()
    decoding.Image.fromarray(pixels(0)).save(eps, "EPS")
    with decoding.Image.open(io.BytesIO(eps.getvalue())) as image:
        assert image.format == "EPS"
    with pytest.raises(decoding.Image.UnidentifiedImageError):
        decoding.decode(eps.getvalue(), 32)
    assert decoding.size_of(eps.getvalue()) is None


def test_text_in_a_png_does_not_unfold():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("a", "x" * 10**7, zip=True)
    file = io.BytesIO()
    decoding.Image.fromarray(pixels(0)).save(file, "PNG", pnginfo=info)
    with pytest.raises(ValueError, match="Decompressed data too large"):
        decoding.decode(file.getvalue(), 32)


def test_terminal_control_characters_in_names_are_escaped(tmp_path):
    """The folder of an image is read out where the image is damaged."""
    folder = tmp_path / "data" / "cat\x1b]0;owned\x07\u202e"
    for place in (folder, tmp_path / "data" / "dog"):
        place.mkdir(parents=True)
        (place / "a.png").write_bytes(encoded(pixels(1)))
    (folder / "b.png").write_bytes(b"no image")
    message = refuse(tmp_path, source="imagefolder", path=str(tmp_path / "data"))
    assert "cat\\x1b]0;owned\\x07\\u202e/b.png" in message and message.replace("\n", "").isprintable()
    assert printable("a\tb\nc \u00e9 \udcff \x9b31m") == "a\tb\nc \u00e9 \\udcff \\x9b31m"
