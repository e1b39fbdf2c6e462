"""Exports of small untrained networks, and a recipe for teachers that learn digits in seconds."""

from pathlib import Path

import torch

from kd_core.models import build as models

NAMES = ["=cat", "<b>dog</b>", "| a | b |", "`x`", *map(str, range(4, 10))]
TEACHER_RECIPE = {
    "data": {"batch_size": 32, "flip": False, "crop_padding": 2},
    "training": {"max_epochs": 2, "learning_rate": 3e-3},
}
STUDENTS = {"test_vit": {"img_size": 32}, "cifar_resnet20": {}}  # and their arguments


def make_student(
    folder: Path, name: str, *, stored: int = 32, resize: int = 32, names: list[str] = NAMES, data: str = "f00d"
) -> Path:
    """An export of a 32-pixel network whose BatchNorm statistics differ from their initial values.

    data: the fingerprint of what it was trained on.
    """
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=len(names), args=STUDENTS[name])
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    models.export(
        model,
        folder,
        architecture=name,
        model_args=STUDENTS[name],
        num_classes=len(names),
        class_names=names,
        preprocess=models.Preprocess(32, resize, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)),
        extra={"image_size": stored, "data_fingerprint": data},
    )
    return folder
