"""Environment variables that launchers set: ranks, precision and plugins; unsupported ones are refused by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from kd_core.errors import UserError
from kd_core.loop.ranks import RANKS, RankMistake

PRECISION = "ACCELERATE_MIXED_PRECISION"  # set by `accelerate launch`, from its option or its config file
PRECISIONS = ("no", "fp16", "bf16")
PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
    "ACCELERATE_IN_TPU_POD": "a TPU pod",
    "ACCELERATE_DYNAMO_BACKEND": "dynamo (training.compile=true compiles the student)",
}
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
STEPS = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
FLAGS = (
    "ACCELERATE_USE_CPU",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH",
    "ACCELERATE_DYNAMO_USE_DYNAMIC",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
    "FORK_LAUNCHED",
)
HOW_TO_START = (
    "start with 'python train_kd.py', 'torchrun --standalone --nproc_per_node N train_kd.py' or "
    "'accelerate launch --multi_gpu --num_processes N train_kd.py' (docs/scaling.md)"
)


def uses_gpu(environ: Mapping[str, str]) -> bool:
    """Whether this process will run on a GPU."""
    import torch  # not above: takes seconds, and most functions here do without

    device = environ.get("ACCELERATE_TORCH_DEVICE", "cuda")
    return torch.cuda.is_available() and device.startswith("cuda") and not _is_on(environ.get("ACCELERATE_USE_CPU"))


def precision(asked: str | None, environ: Mapping[str, str]) -> str:
    """The autocast type: `asked` by the settings, else the launcher's, else "no".

    UserError if the launcher asks for a precision that this project does not support, such as fp8.
    """
    given = _launchers_precision(environ)
    if asked is not None:
        return asked
    if given and given not in PRECISIONS:
        raise UserError(
            f"{PRECISION}: is {given!r}, allowed: {', '.join(PRECISIONS)}; it comes from 'accelerate launch "
            "--mixed_precision' or accelerate's config file; training.mixed_precision in the settings overrides it"
        )
    return given or "no"


def about_precision(asked: str | None, environ: Mapping[str, str]) -> str | None:
    """A notice about `precision`; None if settings and launcher do not differ."""
    given = _launchers_precision(environ)
    if given in ("", "no", asked):  # "no" is also the launcher's default
        return None
    if asked is None:
        return f"mixed precision {given}: the launcher's ({PRECISION}), as training.mixed_precision is not set"
    return f"training.mixed_precision: {asked}, as the settings say; the launcher's {given} ({PRECISION}) is not used"


def _launchers_precision(environ: Mapping[str, str]) -> str:
    return environ.get(PRECISION, "").strip().lower()


def check(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several processes.

    UserError, as one message, for Accelerate features that the training loop does not support, for flags that
    Accelerate cannot parse, and for ranks that are incomplete or contradict each other.
    """
    problems = [*_plugins(environ), *_unreadable(environ)]
    if problems:
        raise UserError("\n".join(problems))
    ranks, problems = _ranks(environ)
    if problems:
        raise RankMistake("\n".join([*problems, f"unset variables left over from an earlier job, and {HOW_TO_START}"]))
    return "local_rank" in ranks


def _plugins(environ: Mapping[str, str]) -> Iterator[str]:
    from accelerate.utils import is_torch_xla_available

    asked = [
        f"{what} ({name}={environ[name]})"
        for name, what in PLUGINS.items()
        if environ.get(name, "").strip().lower() not in ("", "false", "no", "0", "off", "f", "n")
    ]
    if environ.get(STEPS, "1").strip() not in ("1", ""):
        asked.append(f"gradient accumulation, gradient_accumulation_steps is not 1 ({STEPS}={environ[STEPS]})")
    if is_torch_xla_available():
        asked.append("torch_xla (installed; USE_TORCH_XLA=0 leaves it out)")
    if asked:
        yield (
            f"accelerate: not supported: {'; '.join(asked)}. Unset the variable, or change accelerate's config file "
            f"with 'accelerate config'; {HOW_TO_START}"
        )


def _unreadable(environ: Mapping[str, str]) -> Iterator[str]:
    """Messages about variables that Accelerate cannot parse."""
    from accelerate.utils import str_to_bool

    for name in FLAGS:
        try:
            str_to_bool(environ.get(name, "false"))
        except ValueError:
            yield f"{name}: is {environ[name]!r}, allowed: true, false; or unset it"
    level = environ.get("ACCELERATE_LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        yield f"ACCELERATE_LOG_LEVEL: is {level!r}, allowed: {', '.join(LEVELS)}; or unset it"
    if environ.get(STEPS) == "":
        yield f"{STEPS}: is empty; unset it"
    device = environ.get("ACCELERATE_TORCH_DEVICE")
    if device is not None and device != "cpu" and not _is_gpu(device):
        yield f"ACCELERATE_TORCH_DEVICE: is {device!r}, allowed: cpu, or a GPU that this machine has; or unset it"


def _is_gpu(name: str) -> bool:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    return device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()


def _is_on(value: str | None) -> bool:
    return (value or "").strip().lower() in ("y", "yes", "t", "true", "on", "1")


def _ranks(environ: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """The ranks of this process, empty if it is the only one, and a message per problem with them."""
    ranks: dict[str, int] = {}
    source: dict[str, str] = {}
    problems: list[str] = []
    for key, names in RANKS.items():
        for name in names:
            text = environ.get(name, "-1").strip()
            if not text.removeprefix("-").isdecimal() or int(text) < -1:
                problems.append(f"{name}: is {environ[name]!r}, must be a whole number, 0 or more")
            elif int(text) >= 0 and key not in ranks:  # -1 means "not set" to Accelerate, too
                ranks[key], source[key] = int(text), name
    if problems:
        return {}, problems
    size, rank = ranks.get("size", 1), ranks.get("rank", 0)
    if "local_rank" not in ranks and size == 1 and rank == 0:
        return {}, []

    # Accelerate reads MPI's names on CPUs only; on GPUs each process would train alone.
    needed = {"size": "WORLD_SIZE", "rank": "RANK", "local_rank": "LOCAL_RANK"}
    gpu = uses_gpu(environ)
    missing = [name for key, name in needed.items() if key not in ranks or (gpu and source[key] != name)]
    missing += [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name, "").strip()]
    given = [f"{source[key]}={ranks[key]}" for key in ("size", "rank", "local_rank", "local_size") if key in ranks]
    if missing:
        return {}, [f"{', '.join(given)}: set, as for several processes, but not {', '.join(missing)}"]
    for part, whole in (("rank", "size"), ("local_rank", "local_size")):
        if whole in ranks and ranks[part] >= ranks[whole]:
            problems.append(
                f"{source[part]}: is {ranks[part]}, but {source[whole]} is {ranks[whole]}; ranks count from 0, so it "
                "must be smaller"
            )
    if ranks.get("local_size", 1) > size:
        problems.append(
            f"{source['local_size']}: is {ranks['local_size']}, more than {source['size']}, which is {size}: one "
            "machine cannot have more processes than there are in total"
        )
    port = environ["MASTER_PORT"].strip()
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        problems.append(f"MASTER_PORT: is {environ['MASTER_PORT']!r}, must be a port from 1 to 65535")
    return ranks, problems
