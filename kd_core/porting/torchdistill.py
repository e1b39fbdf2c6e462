"""torchdistill's experiment files, in the format with `key` and `kwargs` (version 1.0 and later).

Layers are modules by name, as in kd.features; torchvision's ResNets have the names of timm's.
"""

from __future__ import annotations

from typing import Any

from kd_core.porting.experiment_file import Keys, shown
from kd_core.porting.translation import LAST_BATCH, TRAINED, Translation

TERMS = "train.criterion.kwargs.sub_terms"
LAST_LAYERS = ("fc", "classifier", "head", "linear")  # whose input is the embedding
LEAST_TEMPERATURE = 1e-3
UNCHANGED = ("sequential", "frozen_modules", "adaptations", "auxiliary_model_wrapper")  # have to be empty
LOGITS = ("student_module_path", "student_module_io", "teacher_module_path", "teacher_module_io")
REGRESSORS = "train.student.auxiliary_model_wrapper"  # of VIDLoss
WIDE = {"16_1": "cifar_wrn_16_1", "16_2": "cifar_wrn_16_2", "40_1": "cifar_wrn_40_1", "40_2": "cifar_wrn_40_2"}
DATASETS = {"CIFAR10": "uoft-cs/cifar10", "CIFAR100": "uoft-cs/cifar100"}
OPTIMIZERS = {"SGD": ("sgd", 0.0), "Adam": ("adam", 0.0), "AdamW": ("adamw", 0.01)}  # default of weight_decay
TRANSFORMS = {"RandomCrop": {"size", "padding"}, "RandomHorizontalFlip": {"p"}}  # the known ones' arguments
NOT_TRANSLATED = {
    "SPKDLoss": "it divides rows by their L1 norm, so it is no multiple of sp; sp is the paper's loss",
    "CCKDLoss": "it is the distance of kernel matrices, so it is no multiple of cc",
    "CRDLoss": "its linear layers and bank are set elsewhere there; kd.features with crd is the same loss",
    "HierarchicalContextLoss": "its fusion modules are set elsewhere there; kd.features with reviewkd is the same loss",
    "DISTPlusLoss": "it adds the correlation of channels where 1 minus it is meant",
    "MSELoss": "its layers are wrapped modules there; kd.features has fitnet for maps and mse for embeddings",
}
SHORTCUT = (
    "torchdistill's wide residual networks project the raw input of a block in its shortcut; here, as in mdistiller, "
    "the shortcut starts after norm and ReLU, so no checkpoint of theirs fits"
)
OLD = "this is the format of torchdistill before 1.0; only the one with key, kwargs and weight can be translated"


def translate(values: dict[str, Any], *, only_kd: bool) -> Translation:
    """The experiment; what cannot be translated is in its `keys.problems`."""
    keys = Keys(values)
    found = Translation(keys, title="torchdistill")
    old = [key for key in ("train.criterion.type", "models.student_model.name") if keys.has(key)]
    if old or keys.has("train.stage1"):
        keys.problem(*((old[0], OLD) if old else ("train.stage1", "training in several stages is not offered")))
        keys.drop(*keys.below(""))
        return found
    _criterion(found)
    found.left_out += keys.drop("test", "train.log_freq", "train.val_data_loader")
    if only_kd:
        keys.drop("datasets", "models", "dependencies")
        keys.drop(*(f"train.{name}" for name in keys.below("train") if name != "criterion"))
        return found
    networks = _networks(found)
    found.more = {"data": _data(found), **found.more, "training": _training(found)}
    found.more["evaluation"] = {"test_at_end": True}
    found.notes += [LAST_BATCH, *([SHORTCUT] if networks else [])]
    found.notes += [TRAINED] if "train.teacher" in networks else []
    return found


# --------------------------------------------------------------------------------------------------------- losses


def _criterion(found: Translation) -> None:
    keys = found.keys
    if keys.word("train.criterion.key") == "WeightedSumLoss":
        names = keys.below(TERMS)
        if not names:
            keys.problem(TERMS, "is missing: the losses, each with criterion and weight")
        for name in names:
            weight = keys.number(f"{TERMS}.{name}.weight")
            _loss(found, f"{TERMS}.{name}.criterion", weight)
            _wrapper(keys, f"{TERMS}.{name}.criterion_wrapper")
        keys.same("train.criterion.kwargs.model_term", None, why="networks have no losses of their own")
    else:
        _loss(found, "train.criterion", 1.0)


def _wrapper(keys: Keys, place: str) -> None:
    """What a label loss of PyTorch is given: the student's logits and the labels."""
    why = "a label loss compares what the student returns with the labels"
    keys.same(f"{place}.key", "SimpleLossWrapper", why=why)
    expected = {
        "input.is_from_teacher": False,
        "input.module_path": ".",
        "input.io": "output",
        "target.uses_label": True,
    }
    for name, value in expected.items():
        keys.same(f"{place}.kwargs.{name}", value, why=why)


def _loss(found: Translation, place: str, weight: float) -> None:
    """The loss whose `key` and `kwargs` are below `place`."""
    keys, key = found.keys, f"{place}.key"
    losses = {
        "KDLoss": _kd, "LogitStdKDLoss": _kd, "DISTLoss": _dist, "CrossEntropyLoss": _cross_entropy,
        "ATLoss": _at, "PKTLoss": _pkt, "RKDLoss": _rkd, "VIDLoss": _vid,
    }  # fmt: skip
    name = keys.word(key).rpartition(".")[2]
    if name in NOT_TRANSLATED:
        keys.refuse(key, NOT_TRANSLATED[name])
        keys.drop(place)
    elif name in losses:
        losses[name](found, name, f"{place}.kwargs", weight)
    else:
        keys.one_of(key, {**losses, **NOT_TRANSLATED}, "loss")
        keys.drop(place)


def _cross_entropy(found: Translation, name: str, kwargs: str, weight: float) -> None:
    keys = found.keys
    keys.same(f"{kwargs}.reduction", "mean", why="the label loss is the mean over the batch")
    _smoothing(found, f"{kwargs}.label_smoothing", float(keys.number(f"{kwargs}.label_smoothing", 0.0)))
    found.add_labels(name, weight)


def _smoothing(found: Translation, key: str, value: float) -> None:
    """Note the label smoothing of a cross-entropy; a problem if an earlier one has another, as ours is one for all."""
    known = found.more.setdefault("training", {}).setdefault("label_smoothing", value)
    if known != value:
        why = "training.label_smoothing is for all cross-entropies"
        found.keys.problem(key, f"smooths labels by {value:g}, another cross-entropy by {known:g}; {why}")


def _kd(found: Translation, name: str, kwargs: str, weight: float) -> None:
    """alpha CE + beta T^2 KL; with alpha 0 or null it is KL alone, without beta and T^2."""
    keys = found.keys
    _of_logits(found, kwargs)
    temperature = float(keys.number(f"{kwargs}.temperature"))
    if not LEAST_TEMPERATURE <= temperature:
        keys.problem(f"{kwargs}.temperature", f"is {temperature:g}, expected a number above {LEAST_TEMPERATURE:g}")
        temperature = 1.0
    beta_given = keys.take(f"{kwargs}.beta") is not None
    alpha = keys.number(f"{kwargs}.alpha", 0.0 if beta_given else None)
    beta = keys.number(f"{kwargs}.beta", 1 - alpha if alpha <= 1 else None)
    keys.same(f"{kwargs}.reduction", "batchmean", why="other reductions divide the KL by something else than the batch")
    keys.same(f"{kwargs}.eps", 1e-7, why="standardize adds 1e-7 to the deviation")
    settings: dict[str, Any] = {"loss": "kd", "temperature": temperature}
    if name == "LogitStdKDLoss":
        settings["standardize"] = True
    if alpha:
        _smoothing(found, f"{kwargs}.alpha", 0.0)  # of its cross-entropy
        found.add_labels(f"{name}'s cross-entropy", weight * alpha)
        found.add_logits(kwargs, f"{name}'s KL", weight * beta, settings)
    else:
        found.add_logits(kwargs, f"{name} with alpha 0", weight, settings, temperature**-2, "1/T^2")
        found.notes.append(f"{name} with alpha 0 leaves out T^2 and ignores beta; kd has T^2")


def _dist(found: Translation, name: str, kwargs: str, weight: float) -> None:
    keys = found.keys
    _of_logits(found, kwargs)
    section = {part: float(keys.number(f"{kwargs}.{part}", 1.0)) for part in ("beta", "gamma")}
    keys.same(f"{kwargs}.eps", 1e-8, why="dist adds 1e-8")
    settings = {"loss": "dist", "temperature": float(keys.number(f"{kwargs}.tau", 1.0)), "dist": section}
    found.add_logits(kwargs, name, weight, settings)
    found.notes.append(
        "DISTLoss clamps norms at 1e-8 where dist adds 1e-8 to their product: equal to about 1e-5, but not where a "
        "class has nearly the same probability for all images of a batch"
    )


def _of_logits(found: Translation, kwargs: str) -> None:
    for name in LOGITS:
        expected = "." if name.endswith("path") else "output"
        found.keys.same(f"{kwargs}.{name}", expected, why="the loss compares what the networks return")


def _at(found: Translation, name: str, kwargs: str, weight: float) -> None:
    keys = found.keys
    pairs: dict[float, list[tuple[str, str]]] = {}  # by weight
    for pair in keys.below(f"{kwargs}.at_pairs"):
        place = f"{kwargs}.at_pairs.{pair}"
        for whose in ("student", "teacher"):
            keys.same(f"{place}.{whose}.io", "output", why="layers are compared by what they return")
        layers = keys.word(f"{place}.student.path"), keys.word(f"{place}.teacher.path")
        pairs.setdefault(keys.number(f"{place}.weight", 1.0), []).append(layers)
    if not pairs:
        keys.problem(f"{kwargs}.at_pairs", "is missing: pairs of layers")
    form = keys.word(f"{kwargs}.mode", "code")
    for factor, both in pairs.items():
        student, teacher = (list(names) for names in zip(*both, strict=True))
        found.add_feature(name, weight * factor, {"loss": "at", "student": student, "teacher": teacher, "form": form})
    found.notes.append("where sides differ, at pools the larger map; ATLoss fails there")


def _vid(found: Translation, name: str, kwargs: str, weight: float) -> None:
    """Its student's layers are those that the regressors of the student's wrapper take."""
    keys, regressors = found.keys, f"{REGRESSORS}.kwargs.regressors"
    for pair in keys.below(f"{kwargs}.feature_pairs"):
        place = f"{kwargs}.feature_pairs.{pair}"
        path = keys.word(f"{place}.student.path")
        one = f"{regressors}.{path.removeprefix('regressor_dict.')}"
        for io in (f"{place}.student.io", f"{place}.teacher.io", f"{one}.io"):
            keys.same(io, "output", why="layers are compared by what they return")
        keys.same(f"{one}.regressor_kwargs.eps", 1e-5, why="vid adds 1e-5 to its variance")
        entry = {
            "loss": "vid",
            "student": [keys.word(f"{one}.path").removeprefix("student_model.")],
            "teacher": [keys.word(f"{place}.teacher.path")],
            "variance": float(keys.number(f"{one}.regressor_kwargs.init_pred_var", 5.0)),
        }
        found.add_feature(f"{name}, {pair}", weight * keys.number(f"{place}.weight", 1.0), entry)
    if not keys.below(f"{kwargs}.feature_pairs"):
        keys.problem(f"{kwargs}.feature_pairs", "is missing: pairs of layers")
    keys.same(f"{REGRESSORS}.key", "VariationalDistributor4VID", why="the regressors of VIDLoss are known alone")
    keys.drop(f"{kwargs}.margin", REGRESSORS)  # the loss has no margin; the channels follow from the networks
    found.notes.append("vid's regressors have the teacher's channels throughout; where sides differ it pools")


def _pkt(found: Translation, name: str, kwargs: str, weight: float) -> None:
    keys = found.keys
    for whose in ("student", "teacher"):
        path, io = keys.word(f"{kwargs}.{whose}_module_path"), keys.word(f"{kwargs}.{whose}_module_io", "output")
        if path not in LAST_LAYERS or io != "input":
            why = f"the {io} of {path!r} need not be the embedding, which pkt compares; the input of 'fc' is"
            keys.problem(f"{kwargs}.{whose}_module_path", f"{shown(path)} cannot be translated: {why}")
    keys.same(f"{kwargs}.eps", 1e-7, why="pkt has 1e-7")
    found.add_feature(name, weight, {"loss": "pkt"})


def _rkd(found: Translation, name: str, kwargs: str, weight: float) -> None:
    keys = found.keys
    for whose in ("student", "teacher"):
        why = "rkd compares embeddings, which 'avgpool' gives; other layers are flattened maps there"
        key = f"{kwargs}.{whose}_output_path"
        if keys.word(key) != "avgpool":
            keys.refuse(key, why)
    keys.same(f"{kwargs}.reduction", "mean", why="it sums over pairs and triples, which is no multiple of rkd")
    factors = {"distance": "dist_factor", "angle": "angle_factor"}
    entry = {ours: float(keys.number(f"{kwargs}.{theirs}", 0.0)) for ours, theirs in factors.items()}
    found.add_feature(name, weight, {"loss": "rkd", **entry})


# ------------------------------------------------------------------------------------- networks, data, optimization


def _networks(found: Translation) -> list[str]:
    """Set `model` and `teachers`; the sections of networks that are there."""
    keys = found.keys
    there = [place for place in ("train.student", "train.teacher") if keys.has(f"models.{place[6:]}_model")]
    names = []
    for place in there:
        model = f"models.{place[6:]}_model"
        names.append(keys.word(f"{model}.key"))
        network = _network(keys, model)
        if place == "train.student":
            found.more["model"] = {"name": network}
        else:
            found.more["teachers"] = [{"model": network, "train": "configs/teachers/papers.yaml", "view": "shared"}]
        vid = keys.take(f"{REGRESSORS}.key") == "VariationalDistributor4VID"
        for name in UNCHANGED:
            if keys.has(f"{place}.{name}") and not (vid and f"{place}.{name}" == REGRESSORS):
                keys.refuse(f"{place}.{name}", "networks are used as they are, with all their parameters")
        keys.same(f"{place}.requires_grad", place == "train.student", why="the student alone is trained")
        keys.drop(*(f"{place}.{name}" for name in ("wrapper", "forward_hook", "forward_proc", *UNCHANGED)))
        left = ("experiment", "_experiment", "ckpt", "src_ckpt", "dst_ckpt", "_weights")
        found.left_out += keys.drop(*(f"{model}.{name}" for name in left))
    found.title = f"torchdistill, {' -> '.join(reversed(names))}"
    return there


def _network(keys: Keys, model: str) -> str:
    """The network here; a problem where it is none of the zoo."""
    name = keys.word(f"{model}.key")
    size = name.removeprefix("wide_resnet")
    if name == "wide_resnet":
        size = f"{keys.whole(f'{model}.kwargs.depth')}_{keys.whole(f'{model}.kwargs.k')}"
    keys.same(f"{model}.kwargs.dropout_p", 0, 0.0, why="the networks here have no dropout")
    keys.drop(*(f"{model}.kwargs.{name}" for name in ("num_classes", "pretrained", "progress", "weights")))
    if size not in WIDE:
        known = ", ".join(f"wide_resnet{size}" for size in WIDE)
        said = name if name != "wide_resnet" else f"wide_resnet{size}"
        keys.problem(
            f"{model}.key",
            f"{shown(said)} cannot be translated: no network of this name; known: {known}; --only kd leaves it out",
        )
    return WIDE.get(size, "")


def _data(found: Translation) -> dict[str, Any]:
    keys, loader = found.keys, "train.train_data_loader"
    wanted = keys.word(f"{loader}.dataset_id")
    place, kwargs, transforms = _training_images(keys, wanted)
    if not place:
        why = "no section of datasets has this id; random parts of splits are not known"
        keys.problem(
            f"{loader}.dataset_id", f"{shown(wanted)} cannot be translated: {why}; --only kd leaves the data out"
        )
        keys.drop("datasets", loader)
        return {}
    keys.same(f"{kwargs}.train", True, why="only the training images of a data set are trained on")
    key = f"{place}.key"
    kind = keys.word(key).rpartition(".")[2]
    if kind not in DATASETS:
        keys.problem(
            key, f"{shown(kind)} cannot be translated: known: {', '.join(DATASETS)}; --only kd leaves the data out"
        )
    data = {"name": DATASETS.get(kind, ""), "val_size": 0, **_augmentation(keys, place, transforms)}
    sizes = [name for name in (f"{loader}.batch_size", f"{loader}.kwargs.batch_size") if keys.has(name)]
    data["batch_size"] = keys.whole(sizes[0] if sizes else f"{loader}.kwargs.batch_size")
    keys.same(f"{loader}.random_sample", True, why="images are drawn in random order")
    names = ("num_workers", "cache_output", "sampler", "kwargs.num_workers", "kwargs.pin_memory", "kwargs.drop_last")
    found.left_out += keys.drop(*(f"{loader}.{name}" for name in names))
    keys.drop("datasets")
    found.notes.append("data.batch_size is that of all processes together; torchdistill's is that of each process")
    return data


def _training_images(keys: Keys, wanted: str) -> tuple[str, str, Any]:
    """Where a data set stands, where its arguments do, and its transforms; empty places where none has the id."""
    place = f"datasets.{wanted}"
    if keys.has(place):
        kwargs = f"{place}.init.kwargs"
        return place, kwargs, keys.take(f"{kwargs}.transform.init.kwargs.transforms")
    for name in keys.below("datasets"):
        for split in keys.below(f"datasets.{name}.splits"):
            kwargs = f"datasets.{name}.splits.{split}.kwargs"
            if keys.take(f"datasets.{name}.splits.{split}.dataset_id") == wanted:
                return f"datasets.{name}", kwargs, keys.take(f"{kwargs}.transform_configs")
    return "", "", None


def _augmentation(keys: Keys, place: str, transforms: Any) -> dict[str, Any]:
    """`crop_padding` and `flip` of the training images; a problem for every other transform."""
    found: dict[str, Any] = {"crop_padding": 0, "flip": False}
    for transform in transforms if isinstance(transforms, list) else [None]:
        if not isinstance(transform, dict):
            keys.problem(f"{place}.transform", f"is {shown(transform)}, expected a list of transforms")
            continue
        name = str(transform.get("key")).rpartition(".")[2]
        init = transform.get("init")
        given = (init if isinstance(init, dict) else transform).get("kwargs")
        given = given if isinstance(given, dict) else {}
        padding, known = given.get("padding", 0), given.keys() <= TRANSFORMS.get(name, given.keys())
        is_padding = type(padding) is int and 0 <= padding <= 32
        if name == "RandomCrop" and known and given.get("size") in (32, [32, 32]) and is_padding:
            found["crop_padding"] = padding
        elif name == "RandomHorizontalFlip" and known and given.get("p", 0.5) == 0.5:
            found["flip"] = True
        elif name not in ("ToTensor", "Normalize"):
            why = "only a random crop of 32 pixels with padding, and flips of half of the images, are known"
            keys.problem(f"{place}.transform", f"{shown(name)} with {shown(given)} cannot be translated: {why}")
    return found


def _training(found: Translation) -> dict[str, Any]:
    keys, optimizer, scheduler = found.keys, "train.optimizer", "train.scheduler"
    epochs = keys.whole("train.num_epochs")
    name, decay = keys.one_of(f"{optimizer}.key", OPTIMIZERS, "optimizer") or ("sgd", 0.0)
    training = {
        **{key: value for key, value in found.more.pop("training", {}).items() if value},
        "max_epochs": epochs,
        "optimizer": name,
        "learning_rate": float(keys.number(f"{optimizer}.kwargs.lr", 0.001)),
        "weight_decay": float(keys.number(f"{optimizer}.kwargs.weight_decay", decay)),
    }
    if name == "sgd":
        training["momentum"] = float(keys.number(f"{optimizer}.kwargs.momentum", 0.0))
        training["nesterov"] = keys.take(f"{optimizer}.kwargs.nesterov", False) is True
    clip = f"{optimizer}.max_grad_norm"
    if keys.has(clip):
        training["clip"] = float(keys.number(clip))
        if not training["clip"]:
            keys.problem(clip, "is 0, which leaves no gradients; leave it out to clip none")
    keys.same(f"{optimizer}.grad_accum_step", 1, why="every batch is a step")
    keys.same(f"{optimizer}.filters_params", True, why="the optimizer has the parameters that are trained")
    keys.same(f"{scheduler}.scheduling_step", 0, why="the schedule is that of epochs")
    kind = keys.word(f"{scheduler}.key", "none")
    if kind == "MultiStepLR":
        training["schedule"] = "multistep"
        training["milestones"] = keys.wholes(f"{scheduler}.kwargs.milestones")
        training["decay_factor"] = float(keys.number(f"{scheduler}.kwargs.gamma", 0.1))
    elif kind == "CosineAnnealingLR":
        training["schedule"] = "cosine"
        keys.same(f"{scheduler}.kwargs.T_max", epochs, why="cosine ends with the last epoch")
        training["min_learning_rate"] = float(keys.number(f"{scheduler}.kwargs.eta_min", 0.0))
        found.notes.append("cosine changes the learning rate in every step, torchdistill's schedule after each epoch")
    else:
        training["schedule"] = "constant"
        if kind != "none":
            keys.refuse(f"{scheduler}.key", "known: MultiStepLR, CosineAnnealingLR")
            keys.drop(scheduler)
    return training
