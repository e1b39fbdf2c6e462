"""mdistiller's experiment files (configs/cifar100/*.yaml): DISTILLER, SOLVER, and a section for each method.

Missing keys have the defaults of mdistiller/engine/cfg.py. Layers: mdistiller's `feats` are the stages of the same
networks here, the stem first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kd_core.porting.experiment_file import Keys
from kd_core.porting.translation import LAST_BATCH, TEACHER, Translation

# theirs: (ours, number of stages with the stem)
NETWORKS = {
    **{f"resnet{depth}": (f"cifar_resnet{depth}", 4) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}": (f"cifar_resnet{depth}", 4) for depth in ("8x4", "32x4")},
    **{f"wrn_{size}": (f"cifar_wrn_{size}", 4) for size in ("16_1", "16_2", "40_1", "40_2")},
    **{f"vgg{depth}": (f"cifar_vgg{depth}", 5) for depth in (8, 11, 13, 16, 19)},
    "ResNet50": ("cifar_resnet50", 5),
    "MobileNetV2": ("cifar_mobilenetv2", 5),
    "ShuffleV1": ("cifar_shufflenet_v1", 4),
    "ShuffleV2": ("cifar_shufflenet_v2", 4),
}
NOT_OFFERED = {
    "KDSVD": "the loss is not offered",
    "OFD": "it compares maps before the ReLU that ends a stage, which modules of wrn and vgg networks alone give, and "
    "has margins of the teacher's BatchNorm; in a loop of your own kd.features takes both (docs/features.md#ofd)",
}
# The last BatchNorm of each block of a VGG but the first, whose output is the map before the ReLU that ends the block.
LAST_NORMS = {"8": (1, 1, 1, 1), "11": (1, 4, 4, 4), "13": (4, 4, 4, 4), "16": (4, 7, 7, 7), "19": (4, 10, 10, 10)}
SELECTION = "mdistiller reports the best epoch on the test images; here the last epoch is the result"


@dataclass(frozen=True)
class Feature:
    """How a method of features is translated."""

    loss: str
    weight: float  # default of LOSS.FEAT_WEIGHT
    layers: str
    numbers: dict[str, tuple[str, float]] = field(default_factory=dict)  # ours: (theirs, default)
    counts: dict[str, tuple[str, int]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()  # keys that describe the networks
    notes: tuple[str, ...] = ()


FEATURES = {
    "AT": Feature("at", 1000.0, "stages", {"p": ("P", 2)}),
    "NST": Feature("nst", 50.0, "stages"),
    "VID": Feature(
        "vid", 1.0, "stages", {"variance": ("INIT_PRED_VAR", 5.0)}, unused=("INPUT_SIZE",),
        notes=("mdistiller's VID never trains its variance, which stays at INIT_PRED_VAR; here it is trained",),
    ),
    "FITNET": Feature("fitnet", 100.0, "hint", unused=("INPUT_SIZE",)),
    "SP": Feature("sp", 3000.0, "last"),
    "PKT": Feature("pkt", 30000.0, "embedding"),
    "RKD": Feature("rkd", 1.0, "embedding", {"distance": ("DISTANCE_WEIGHT", 25), "angle": ("ANGLE_WEIGHT", 50)}),
    "CRD": Feature(
        "crd", 0.8, "embedding",
        {"tau": ("NCE.TEMPERATURE", 0.07), "momentum": ("NCE.MOMENTUM", 0.5)},
        {"width": ("FEAT.DIM", 128), "negatives": ("NCE.K", 16384)},
        unused=("FEAT.STUDENT_DIM", "FEAT.TEACHER_DIM"),
        notes=("crd draws its negatives from each class evenly and starts its banks at unit vectors",),
    ),
}  # fmt: skip


def translate(values: dict[str, Any], *, only_kd: bool) -> Translation:
    """The experiment; what cannot be translated is in its `keys.problems`."""
    keys = Keys(values)
    found = Translation(keys)
    kind = keys.word("DISTILLER.TYPE", "NONE").upper()
    epochs = keys.whole("SOLVER.EPOCHS", 240)
    methods = {"KD": _kd, "DKD": _dkd, "REVIEWKD": _reviewkd}
    if kind == "NONE":
        found.add_labels("cross-entropy", 1.0)
    elif kind in NOT_OFFERED:
        keys.refuse("DISTILLER.TYPE", NOT_OFFERED[kind])
        keys.drop(kind)
    elif kind in methods:
        methods[kind](found, epochs)
    elif kind in FEATURES:
        _feature(found, kind)
    else:
        keys.one_of("DISTILLER.TYPE", {**methods, **FEATURES, "NONE": None}, "method")
    _rest(found, kind, epochs, only_kd)
    return found


def _kd(found: Translation, epochs: int) -> None:
    keys = found.keys
    found.add_labels("cross-entropy", keys.number("KD.LOSS.CE_WEIGHT", 0.1))
    settings = {"loss": "kd", "temperature": float(keys.number("KD.TEMPERATURE", 4))}
    found.add_logits("KD", "KD", keys.number("KD.LOSS.KD_WEIGHT", 0.9), settings)


def _dkd(found: Translation, epochs: int) -> None:
    keys = found.keys
    found.add_labels("cross-entropy", keys.number("DKD.CE_WEIGHT", 1.0))
    parts = {"alpha": float(keys.number("DKD.ALPHA", 1.0)), "beta": float(keys.number("DKD.BETA", 8.0))}
    section = {**parts, "warmup": _warmup(found, "DKD.WARMUP", epochs)}
    settings = {"loss": "dkd", "temperature": float(keys.number("DKD.T", 4.0)), "dkd": section}
    found.add_logits("DKD", "DKD after its warm-up", 1.0, settings)


def _reviewkd(found: Translation, epochs: int) -> None:
    keys = found.keys
    found.add_labels("cross-entropy", keys.number("REVIEWKD.CE_WEIGHT", 1.0))
    keys.same("REVIEWKD.STU_PREACT", False, why="the student's maps are those after its ReLU")
    keys.drop(*(f"REVIEWKD.{name}" for name in ("OUT_SHAPES", "IN_CHANNELS", "OUT_CHANNELS", "MAX_MID_CHANNEL")))
    (_, own), (teacher, theirs) = _networks(found)
    levels = theirs - 1  # all of the teacher's stages but the stem, and as many of the student's from the end
    shapes = keys.take("REVIEWKD.SHAPES")
    if own < levels or (isinstance(shapes, list) and len(shapes) != levels + 1):
        wanted = f"{levels + 1} sizes, of the teacher's {levels} stages and its output, which the student has, too"
        keys.problem("REVIEWKD.SHAPES", f"is {shapes}, expected {wanted}")
    entry: dict[str, Any] = {"loss": "reviewkd", "student": [*range(max(0, own - levels), own), "embedding"]}
    before = _before_relu(teacher)
    maps = [*before, "embedding"] if before else [*range(1, theirs), "embedding"]
    entry |= {"teacher": maps, "width": 512}  # which MAX_MID_CHANNEL does not change there
    entry["warmup"] = _warmup(found, "REVIEWKD.WARMUP_EPOCHS", epochs)
    found.add_feature("ReviewKD after its warm-up", keys.number("REVIEWKD.REVIEWKD_WEIGHT", 1.0), entry)
    if not before:
        words = "reviewkd sees the teacher's maps after the ReLU that ends a stage, mdistiller those before it"
        found.notes.append(words)


def _before_relu(network: str) -> list[str]:
    """The modules whose outputs are mdistiller's `preact_feats[1:]`; none where no module of the network gives them."""
    if network.startswith("cifar_wrn_"):
        return ["layer2.0.bn1", "layer3.0.bn1", "bn1"]
    if network.startswith("cifar_vgg"):
        norms = LAST_NORMS[network.removeprefix("cifar_vgg")]
        return [f"block{block}.{norm}" for block, norm in enumerate(norms, start=1)]
    return []


def _feature(found: Translation, kind: str) -> None:
    keys, feature = found.keys, FEATURES[kind]
    found.add_labels("cross-entropy", keys.number(f"{kind}.LOSS.CE_WEIGHT", 1.0))
    weight = keys.number(f"{kind}.LOSS.FEAT_WEIGHT", feature.weight)
    layers: list[int | str] = ["embedding"] if feature.layers == "embedding" else [-1]
    if feature.layers == "stages":
        layers = [*_stages(found)]
    elif feature.layers == "hint":
        layers = [keys.whole("FITNET.HINT_LAYER", 2)]
    entry: dict[str, Any] = {"loss": feature.loss, "student": layers, "teacher": layers}
    for name, (theirs, default) in feature.numbers.items():
        entry[name] = float(keys.number(f"{kind}.{theirs}", default))
    for name, (theirs, count) in feature.counts.items():
        entry[name] = keys.whole(f"{kind}.{theirs}", count)
    keys.drop(*(f"{kind}.{name}" for name in feature.unused))
    keys.same("VID.EPS", 1e-5, why="vid adds 1e-5 to its variance")
    keys.same("RKD.PDIST.SQUARED", False, why="rkd compares distances that are not squared")
    keys.same("RKD.PDIST.EPSILON", 1e-12, why="rkd has no such setting")
    keys.same("CRD.MODE", "exact", why="crd draws negatives of other classes alone")
    found.add_feature(feature.loss, weight, entry)
    found.notes += feature.notes


def _stages(found: Translation) -> list[int]:
    """The stages after the stem that both networks have: mdistiller's feats[1:]."""
    return list(range(1, min(stages for _, stages in _networks(found))))


def _networks(found: Translation) -> list[tuple[str, int]]:
    """Student and teacher: our names, and how many stages they have with the stem."""
    return [_network(found, key) for key in ("DISTILLER.STUDENT", "DISTILLER.TEACHER")]


def _network(found: Translation, key: str) -> tuple[str, int]:
    default = {"DISTILLER.STUDENT": "resnet32", "DISTILLER.TEACHER": "ResNet50"}[key]
    network = found.keys.one_of(key, NETWORKS, "network", default)
    return network or ("", 4)


def _warmup(found: Translation, key: str, epochs: int) -> float:
    """The fraction of training in which a loss grows."""
    warmup = found.keys.number(key, 20)
    if warmup > epochs:
        found.keys.problem(key, f"is {warmup:g}, more than the {epochs} epochs of training")
    elif warmup:
        found.notes.append(f"{key}: mdistiller's loss grows epoch by epoch, here it grows step by step")
    return min(1.0, warmup / max(epochs, 1))


def _rest(found: Translation, kind: str, epochs: int, only_kd: bool) -> None:
    """Everything but the losses, and the keys that change nothing."""
    keys = found.keys
    teacher, student = keys.word("DISTILLER.TEACHER", "ResNet50"), keys.word("DISTILLER.STUDENT", "resnet32")
    found.title = f"mdistiller, {kind}, {teacher} -> {student}"
    others = [name for name in ("KD", "DKD", "REVIEWKD", "KDSVD", "OFD", *FEATURES) if name != kind]  # not read there
    found.left_out += keys.drop("EXPERIMENT", "LOG", "DATASET.NUM_WORKERS", "DATASET.TEST", *others)
    keys.same("SOLVER.TRAINER", "base", "crd", why="other trainers change the optimizer's steps, as DOT does")
    keys.drop("SOLVER.DOT")
    if only_kd:
        keys.drop("SOLVER", "DATASET")
        return
    dataset = "only cifar100 is known, with its augmentation; --only kd leaves the data out"
    keys.same("DATASET.TYPE", "cifar100", why=dataset)
    keys.same("SOLVER.TYPE", "SGD", why="mdistiller itself has no other optimizer")
    student, teacher = (_network(found, f"DISTILLER.{whose}")[0] for whose in ("STUDENT", "TEACHER"))
    found.more["data"] = {
        "name": "uoft-cs/cifar100", "val_size": 0, "batch_size": keys.whole("SOLVER.BATCH_SIZE", 64),
    }  # fmt: skip
    found.more["model"] = {"name": student}
    found.notes.append(LAST_BATCH)
    if kind != "NONE":
        found.more["teachers"] = [{"model": teacher, "train": "configs/teachers/papers.yaml", "view": "shared"}]
        found.notes.append(TEACHER)
    found.more["training"] = {
        "max_epochs": epochs,
        "optimizer": "sgd",
        "learning_rate": float(keys.number("SOLVER.LR", 0.05)),
        "momentum": float(keys.number("SOLVER.MOMENTUM", 0.9)),
        "weight_decay": float(keys.number("SOLVER.WEIGHT_DECAY", 1e-4)),
        "schedule": "multistep",
        "milestones": keys.wholes("SOLVER.LR_DECAY_STAGES", [150, 180, 210]),
        "decay_factor": float(keys.number("SOLVER.LR_DECAY_RATE", 0.1)),
    }
    found.more["evaluation"] = {"test_at_end": True}
    found.notes.append(SELECTION)
