"""The model card of an export, a README.md that the Hub reads: its metrics, its origin, how it is loaded."""

from __future__ import annotations

import html
import importlib.metadata
import math
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from kd_core.config import Config
from kd_core.config.privacy import redacted
from kd_core.errors import printable
from kd_core.evaluation.metric_names import LABELS
from kd_core.export.int8 import Int8
from kd_core.export.kinds import ABOUT
from kd_core.export.write import OPSET, in_stock_timm, registered_by
from kd_core.files import read_object
from kd_core.models.build import LoadedModel, count_parameters
from kd_core.report import text_table
from kd_core.run.folder import RunFolder
from kd_core.run.tracking import code_version
from kd_core.teachers.load import EXPOSED

HUB = {"accuracy": "accuracy", "auroc": "roc_auc", "brier": "brier_score"}  # metrics that the Hub has a name for
SHOWN = ("accuracy", "top5", "macro_accuracy", "auroc", "nll", "brier", "ece", "ece_adaptive")
# Metrics of an evaluation: the card's name and the Hub's.
FIGURES = {key: (LABELS[key], HUB.get(key)) for key in SHOWN}
SHARES = ("accuracy", "top5", "macro_accuracy")  # written in percent
SECTIONS = ("data", "model", "teachers", "kd", "training")  # of the settings: those that shape a student
LIBRARIES = ("torch", "torchvision", "timm")
PACKAGES = {"onnx": ("onnx", "onnxscript"), "onnx-int8": ("onnx", "onnxscript", "onnxruntime")}  # besides, of a kind
FOLDER = re.compile(r"^(?:~|/|[A-Za-z]:[\\/]).*[\\/]")  # all but the last part of an absolute path

PICTURE = """\
image = ImageOps.exif_transpose(Image.open("picture.png")).convert("RGB")
"""
LOAD_TIMM = """\
import timm
import torch
from PIL import Image, ImageOps

network = timm.create_model("{source}", pretrained=True).eval()
names = network.pretrained_cfg["label_names"]
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))

{picture}image = ImageOps.fit(image, ({side}, {side}), Image.Resampling.BICUBIC)  # as training images were stored
with torch.inference_mode():
    probabilities = network(transform(image)[None]).softmax(1)[0]
for label in probabilities.argsort(descending=True)[:5]:
    print(f"{{probabilities[label]:.2%}} {{names[label]}}")
"""
LOAD_OTHER = """\
import json

import numpy as np
{imports}
from PIL import Image, ImageOps

with open("{about}", encoding="utf-8") as file:
    about = json.load(file)
stored, resize, size = about["stored_size"], about["resize"], about["size"]

{picture}image = ImageOps.fit(image, (stored, stored), Image.Resampling.BICUBIC)  # as training images were stored
image = image.resize((resize, resize), Image.Resampling[about["interpolation"].upper()])
border = round((resize - size) / 2)
image = image.crop((border, border, border + size, border + size))
images = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / 255  # [1,3,size,size] in [0,1]

{run}
probabilities = np.exp(logits - logits.max())
probabilities /= probabilities.sum()
for label in probabilities.argsort()[::-1][:5]:
    print(f"{{probabilities[label]:.2%}} {{about['class_names'][label]}}")
"""
RUN = {
    "onnx": (
        "import onnxruntime",
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])\n'
        'logits = session.run(["logits"], {"images": images})[0][0]',
    ),
    "program": (
        "import torch",
        'network = torch.export.load("model.pt2").module()\n'
        "with torch.inference_mode():\n"
        "    logits = network(torch.from_numpy(images))[0].numpy()",
    ),
}
RUN["onnx-int8"] = RUN["onnx"]


@dataclass(frozen=True)
class Lineage:
    """Where a student comes from.

    export: its folder.
    run: the run folder that it lies in, if any.
    config: the settings that it was trained with, if they are known.
    data: `Data.describe()`, if the data could be loaded.
    """

    export: Path
    run: Path | None
    config: Config | None
    data: dict[str, Any] | None


def loading_code(kind: str, loaded: LoadedModel, repo: str | None = None) -> str:
    """A Python script that prints the classes of picture.png, to be run in the export's folder (kind hub: anywhere)."""
    if kind in RUN:
        imports, run = RUN[kind]
        return LOAD_OTHER.format(imports=imports, run=run, about=ABOUT, picture=PICTURE)
    source = f"hf-hub:{repo}" if kind == "hub" else "local-dir:."
    code = LOAD_TIMM.format(source=source, picture=PICTURE, side=loaded.stored_side)
    if in_stock_timm(loaded.architecture):
        return code
    last = "from PIL import Image, ImageOps\n"
    module = registered_by(loaded.architecture)
    return code.replace(last, f"{last}\nimport {module}  # of the project that trained it: registers the network\n")


def render(
    kind: str,
    loaded: LoadedModel,
    lineage: Lineage,
    difference: float,
    images: str,
    repo: str | None,
    int8: Int8 | None = None,
) -> str:
    """The text of README.md.

    Args:
        difference: of the export's logits to the student's, at most; with `int8` of the float32 file's.
        images: in words, those on which that was measured.
        repo: ORG/NAME, for kind hub.
        int8: what was measured, for kind onnx-int8.
    """
    figures = _figures(lineage)
    before = "Before it was quantized, in float32:\n\n" if int8 and figures else ""
    name = repo.rpartition("/")[2] if repo else f"{loaded.architecture} student"
    text = f"""\
# {_plain(name)}

An image classifier, `{loaded.architecture}`, of {count_parameters(loaded.model):,} parameters for {loaded.num_classes}
classes. It was trained with {_method(lineage)}.

{before}{_results(figures)}

## Use

{_contents(kind, loaded)}

```python
{loading_code(kind, loaded, repo)}```

{_int8(int8)}{"The logits of the float32 file" if int8 else "Its logits"} differ from the student's by at most \
{difference:.1e}, on {images}.

## Origin

{_origin(kind, loaded, lineage)}
{_settings(lineage)}
## License

None is stated. If you publish this model, choose one and add it as `license:` at the top of this file; the data and the
teachers have their own.
"""
    return f"---\n{_front_matter(kind, name, lineage, {} if int8 else figures)}\n---\n\n{text}"


# ---------------------------------------------------------------------------------------------------- its parts


def _front_matter(kind: str, name: str, lineage: Lineage, figures: dict[str, dict[str, float]]) -> str:
    data = lineage.config.data if lineage.config else None
    public = data.name if data and data.source == "hub" else None
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=printable(public or (data.source if data else "unknown")),
            dataset_name=printable(public or (data.source if data else "unknown")),
            dataset_split={"val": "validation"}.get(split, split),
            metric_type=known,
            metric_name=title,
            metric_value=round(row[key], 6),
        )
        for split, row in figures.items()
        for key, (title, known) in FIGURES.items()
        if known and key in row
    ]
    card = ModelCardData(
        library_name={"onnx": "onnx", "onnx-int8": "onnx", "program": "pytorch"}.get(kind, "timm"),
        pipeline_tag="image-classification",
        tags=["image-classification", "knowledge-distillation", *(["timm"] if kind in ("timm", "hub") else [kind])],
        datasets=[printable(public)] if public else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


def _summary(lineage: Lineage) -> dict[str, Any]:
    """summary.json of the run, if the export is the student that it describes."""
    if lineage.run is None or not RunFolder(lineage.run).has_selected(lineage.export):
        return {}
    return read_object(lineage.run / "summary.json")


def _figures(lineage: Lineage) -> dict[str, dict[str, float]]:
    """{split: {metric: value}} of exactly this network: from its metrics.json, the run's summary and evaluations."""
    found: dict[str, dict[str, Any]] = {"val": {}, "test": {}}
    own = lineage.export / "metrics.json"
    trained = read_object(own) if own.is_file() else {}
    evaluation = _summary(lineage).get("evaluation")
    for split, row in found.items():
        row |= {key: trained.get(f"{split}/{key}") for key in FIGURES} | {"nll": trained.get(f"{split}/loss_ce")}
        if split == "test":
            row["accuracy"] = _summary(lineage).get("final_test_accuracy")
        if isinstance(evaluation, dict) and isinstance(evaluation.get(split), dict):
            row |= evaluation[split]
        file = lineage.run / f"evaluation-{split}.json" if lineage.run else None
        if file and file.is_file():
            evaluated = read_object(file)
            if Path(str(evaluated.get("checkpoint_path"))).expanduser().resolve() == lineage.export.resolve():
                row |= evaluated
    numbers = {
        split: {key: float(row[key]) for key in FIGURES if isinstance(row.get(key), (int, float))}
        for split, row in found.items()
    }
    return {
        split: {key: value for key, value in row.items() if math.isfinite(value)}
        for split, row in numbers.items()
        if row
    }


def _results(figures: dict[str, dict[str, float]]) -> str:
    if not figures:
        return "No metrics are known."
    rows = [
        [title, *(_figure(key, row.get(key)) for row in figures.values())]
        for key, (title, _) in FIGURES.items()
        if any(key in row for row in figures.values())
    ]
    return _table(["", *({"val": "validation"}.get(split, split) for split in figures)], rows, numbers=True)


def _figure(key: str, value: Any) -> str:
    if not isinstance(value, (int, float)):
        return ""
    return f"{value:.2%}" if key in SHARES else f"{value:.4f}"


def _method(lineage: Lineage) -> str:
    if lineage.config is None:
        return "a method that is not known here"
    teachers = len(lineage.config.teachers)
    method = f"method `{lineage.config.kd.type}`"
    return method + (f" of knowledge distillation, from {teachers} teacher(s)" if teachers else ", without teachers")


def _contents(kind: str, loaded: LoadedModel) -> str:
    shape = f"float32 [N,3,{loaded.preprocess.size},{loaded.preprocess.size}] in [0,1], RGB, for any N"
    outside = f"`{ABOUT}` says how images are brought to that size and names the classes; the file itself holds it too"
    if kind in RUN:
        what = f"`model.onnx`, opset {OPSET}" if kind.startswith("onnx") else "`model.pt2`, a `torch.export` program"
        return f"{what}: images {shape} to logits; the normalization is inside. {outside}."
    if in_stock_timm(loaded.architecture):
        return "timm's format; torch and timm suffice."
    return (
        f"timm's format, but `{loaded.architecture}` is not in stock timm: the project that trained it must be "
        "importable. A program (`--export program`) or ONNX needs none of its code."
    )


def _int8(found: Int8 | None) -> str:
    if found is None:
        return ""
    kept = f"It was kept on request, although it {' and '.join(found.objections)}.\n\n" if found.objections else ""
    return f"""\
Its weights and activations are 8-bit integers, except in the last layer, with the ranges that they have on
{found.calibrated:,} training images. Beside the float32 file from which it was made, on {found.images:,} images of the
{found.split} split:

{_table(["", "float32", "int8"], found.rows(), numbers=True)}

{kept}Times are medians on the machine that exported it ({found.machine}): other CPUs compare otherwise. On x86-64
without VNNI instructions sums can saturate, which costs accuracy.

"""


def _origin(kind: str, loaded: LoadedModel, lineage: Lineage) -> str:
    config, summary, extra = lineage.config, _summary(lineage), loaded.config.get("extra")
    data = lineage.data or {
        "fingerprint": extra.get("data_fingerprint") if isinstance(extra, dict) else None,
        "val_images": summary.get("val_images"),
    }
    version = code_version()
    commit = version.get("git_commit", "unknown") + ", with changes" * bool(version.get("git_modified"))
    libraries = [*LIBRARIES, *PACKAGES.get(kind, ())]
    rows = {
        "data": (config.data.name if config.data.source == "hub" else config.data.source) if config else None,
        "fingerprint of the data": data.get("fingerprint"),
        "training images": data.get("train_images"),
        "validation images": data.get("val_images"),
        "run": lineage.run.resolve().name if lineage.run else None,
        "seed": summary.get("seed"),
        "epochs": summary.get("epochs"),
        "code that exported it (git)": commit,
        "libraries": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries),
        "Python": platform.python_version(),
    }
    text = _table(["", ""], [[title, "unknown" if value is None else str(value)] for title, value in rows.items()])
    teachers = [
        [_without_folders(str(teacher.get("name"))), *_accuracies(teacher)] for teacher in _teachers(config, summary)
    ]
    header = ["teacher", "validation accuracy", "test accuracy"]
    if not any(row[2] for row in teachers):
        header, teachers = header[:2], [row[:2] for row in teachers]
    return text + ("\n\n" + _table(header, teachers) if teachers else "")


def _accuracies(teacher: dict[str, Any]) -> list[str]:
    """A teacher's accuracy on validation, with a remark if it may have been trained on these images, and on test."""
    exposed = EXPOSED.get(str(teacher.get("saw_validation")))
    validation = _figure("accuracy", teacher.get("val_accuracy")) or "unknown"
    return [validation + (f" ({exposed})" if exposed else ""), _figure("accuracy", teacher.get("test_accuracy"))]


def _teachers(config: Config | None, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The teachers as the run measured them, otherwise as the settings name them."""
    measured = summary.get("teachers")
    if isinstance(measured, list):
        return [teacher for teacher in measured if isinstance(teacher, dict)]
    return [{"name": one.model or one.weights or one.logits} for one in config.teachers] if config else []


def _settings(lineage: Lineage) -> str:
    if lineage.config is None:
        return ""
    settings = lineage.config.model_dump(mode="json", include=set(SECTIONS))
    text = printable(yaml.safe_dump(_without_folders(settings), sort_keys=False, allow_unicode=True, width=100))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"\n<details><summary>Settings</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>\n"


# ------------------------------------------------------------------------------------------------------- text


def _without_folders(value: Any) -> Any:
    """Plain data without passwords, and with only the last part of absolute paths and of paths from a home folder."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return FOLDER.sub("", value) if isinstance(value, str) and FOLDER.match(value) else redacted(value)


def _plain(text: str) -> str:
    """Text from data on one line, escaped for Markdown and HTML."""
    line = " ".join(printable(redacted(text)).split())
    return re.sub(r"([\\`*_{}\[\]#!|~$])", r"\\\1", html.escape(line, quote=False))


def _table(header: list[str], rows: list[list[str]], *, numbers: bool = False) -> str:
    return text_table.markdown(header, [list(map(_plain, row)) for row in rows], numbers=numbers)
