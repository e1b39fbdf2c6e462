"""What launchers leave in the environment: taken, or refused by name; and waiting for other processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.distributed import run
from waiting import free_port, wait_for
from warm_process import WarmProcess

from kd_core.config import Config, TrainingConfig, digest, resolve, with_precision
from kd_core.errors import UserError
from kd_core.loop import launcher, processes, ranks
from kd_core.run.script import run_script

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here",
    "MASTER_PORT": "29500",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500",
}  # fmt: skip
INTEL_MPI = {
    "PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "here",
    "MASTER_PORT": "1",
}  # fmt: skip


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


# ------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        ({"WORLD_SIZE": "1"}, False),
        ({"RANK": "0", "WORLD_SIZE": "1"}, False),
        ({"LOCAL_RANK": "-1"}, False),  # what some launchers say for a single process
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, False),  # accelerate launch --cpu --num_processes 2
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),
        (TORCHRUN, True),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), True),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, True),
        ({**OPEN_MPI, **TORCHRUN, "WORLD_SIZE": "8", "RANK": "5"}, True),  # mpirun starts torchrun on each machine
        (OPEN_MPI, True),
        (INTEL_MPI, True),
        ({"ACCELERATE_USE_FSDP": "false", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "True"}, False),
        ({"ACCELERATE_DYNAMO_BACKEND": "no", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, False),
    ],
)
def test_consistent_variables_are_accepted(environ, several, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert launcher.check(environ) is several


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE=2: set", "but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT", "unset"]),
        ({"LOCAL_RANK": "0"}, ["LOCAL_RANK=0", "not WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT"]),
        ({"RANK": "1"}, ["RANK=1", "WORLD_SIZE"]),
        (without(TORCHRUN, "RANK"), ["but not RANK"]),
        (without(TORCHRUN, "LOCAL_RANK"), ["but not LOCAL_RANK"]),
        (without(TORCHRUN, "MASTER_ADDR"), ["but not MASTER_ADDR"]),
        ({**TORCHRUN, "MASTER_PORT": ""}, ["but not MASTER_PORT"]),
        ({**TORCHRUN, "RANK": "2"}, ["RANK: is 2, but WORLD_SIZE is 2"]),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, ["LOCAL_RANK: is 2, but LOCAL_WORLD_SIZE is 2"]),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}, ["LOCAL_WORLD_SIZE: is 4, more than WORLD_SIZE"]),
        ({**TORCHRUN, "RANK": "one"}, ["RANK: is 'one', must be a whole number"]),
        ({"WORLD_SIZE": ""}, ["WORLD_SIZE: is '', must be a whole number"]),
        ({"WORLD_SIZE": "2.0"}, ["WORLD_SIZE: is '2.0'"]),
        ({"LOCAL_RANK": "-2"}, ["LOCAL_RANK: is '-2'"]),
        ({"WORLD_SIZE": "\u00b2"}, ["WORLD_SIZE"]),
        ({**TORCHRUN, "MASTER_PORT": "http"}, ["MASTER_PORT: is 'http', must be a port"]),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, ["MASTER_PORT: is '70000'"]),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ["OMPI_COMM_WORLD_SIZE=4", "not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"]),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, ["PMI_SIZE=2, PMI_RANK=0", "not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"]),
        ({"MV2_COMM_WORLD_SIZE": "x"}, ["MV2_COMM_WORLD_SIZE: is 'x'"]),
        (without(OPEN_MPI, "MASTER_ADDR"), ["OMPI_COMM_WORLD_SIZE=2", "but not MASTER_ADDR"]),
    ],
)
def test_incomplete_or_contradictory_variables_are_named(environ, words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ranks.RankMistake) as caught:
        launcher.check(environ)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "torchrun --standalone" in str(caught.value)


def test_on_gpus_mpis_names_alone_would_leave_each_process_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ranks.RankMistake, match="but not WORLD_SIZE, RANK, LOCAL_RANK"):
        launcher.check(OPEN_MPI)
    assert launcher.check(TORCHRUN)
    assert launcher.check({**OPEN_MPI, "ACCELERATE_USE_CPU": "true"})


def test_every_process_says_that_its_rank_is_wrong(monkeypatch, capsys):
    """Also the one that is not the first: nobody knows whether there is a first one."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as end:
        run_script(lambda words: launcher.check(os.environ) and None, "script.py")
    assert end.value.code == 2 and capsys.readouterr().err.startswith("script.py: RANK=1: set")


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "3"}, False),
        ({"OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"PMI_RANK": "0"}, True),
        ({"RANK": "0", "PMI_RANK": "2"}, True),
    ],
)
def test_the_first_process_is_known_before_joining(environ, first):
    assert ranks.is_first(environ) is first


# ----------------------------------------------------------------------------------------------------- plugins


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "TRUE", "FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "context or sequence parallelism"),
        ("ACCELERATE_USE_SAGEMAKER", "true", "SageMaker"),
        ("ACCELERATE_IN_TPU_POD", "1", "TPU"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "training.compile=true"),
        ("ACCELERATE_DYNAMO_BACKEND", "foo", "dynamo"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient accumulation"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto", "gradient accumulation"),
    ],
)
def test_unsupported_features_are_refused_by_name(name, value, what):
    with pytest.raises(UserError) as caught:
        launcher.check({**TORCHRUN, name: value})
    assert f"({name}={value})" in str(caught.value) and what in str(caught.value)
    assert "accelerate config" in str(caught.value) and "torchrun --standalone" in str(caught.value)


def test_all_that_is_refused_is_one_message():
    with pytest.raises(UserError) as caught:
        launcher.check({"ACCELERATE_USE_FSDP": "true", "ACCELERATE_DYNAMO_BACKEND": "EAGER", "WORLD_SIZE": "2"})
    assert "FSDP" in str(caught.value) and "dynamo" in str(caught.value) and str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_CPU", "maybe"),
        ("ACCELERATE_DEBUG_MODE", ""),
        ("ACCELERATE_CPU_AFFINITY", "2"),
        ("FORK_LAUNCHED", "?"),
        ("ACCELERATE_TORCH_DEVICE", "gpu"),
        ("ACCELERATE_TORCH_DEVICE", "mps"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:99"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ""),
        ("ACCELERATE_LOG_LEVEL", "foo"),
    ],
)
def test_variables_that_accelerate_cannot_parse_are_named(name, value):
    with pytest.raises(UserError, match=f"^{name}: is .*unset it$"):
        launcher.check({name: value})


# --------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("asked", "told", "precision", "said"),
    [
        (None, None, "no", None),
        (None, "", "no", None),
        (None, "no", "no", None),
        (None, "bf16", "bf16", "mixed precision bf16: the launcher's"),
        (None, "BF16", "bf16", "mixed precision bf16: the launcher's"),
        (None, "fp16", "fp16", "mixed precision fp16: the launcher's"),
        ("bf16", None, "bf16", None),
        ("bf16", "bf16", "bf16", None),
        ("bf16", "no", "bf16", None),  # which every launcher says that was not asked
        ("bf16", "fp16", "bf16", "as the settings say; the launcher's fp16"),
        ("no", "bf16", "no", "as the settings say; the launcher's bf16"),
        ("no", "fp8", "no", "as the settings say; the launcher's fp8"),
    ],
)
def test_settings_take_precedence_over_the_launcher(asked, told, precision, said):
    environ = {} if told is None else {"ACCELERATE_MIXED_PRECISION": told}
    assert launcher.precision(asked, environ) == precision
    notice = launcher.about_precision(asked, environ)
    assert (notice is None) if said is None else (said in notice)


@pytest.mark.parametrize("told", ["fp8", "FP8", "tf32"])
def test_an_unknown_precision_is_refused(told):
    with pytest.raises(UserError, match=f"ACCELERATE_MIXED_PRECISION: is '{told.lower()}', allowed: no, fp16, bf16"):
        launcher.precision(None, {"ACCELERATE_MIXED_PRECISION": told})


def test_the_identity_holds_the_precision_whoever_chose_it():
    said = {precision: Config(training=TrainingConfig(mixed_precision=precision)) for precision in (None, "no", "bf16")}
    digests = {precision: digest(config, "0") for precision, config in said.items()}
    assert digests[None] == digests["no"] != digests["bf16"]
    for precision in ("no", "bf16"):
        resolved = with_precision(said[None], precision)
        assert resolved == said[precision] and digest(resolved, "0") == digests[precision]
        assert with_precision(said[precision], "fp16") is said[precision]


def test_a_launchers_precision_has_to_fit_the_settings():
    config = resolve([]).config.model_copy(update={"training": TrainingConfig(skip_nonfinite=2)})
    assert with_precision(config, "bf16").training.mixed_precision == "bf16"
    with pytest.raises(UserError, match="skip_nonfinite must be 0 with fp16"):
        with_precision(config, "fp16")


def script(*words: str, **environ: str) -> tuple[int | None, str]:
    """Exit status and output."""
    process = WarmProcess(list(words), env={**os.environ, **environ})
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def test_a_run_keeps_the_launchers_precision(tmp_path):
    """In its settings and its name: the same run is found again by whoever says the same, and evaluated alike."""
    small = [
        f"--output_dir={tmp_path / 'runs'}", f"--cache.dir={tmp_path / 'cache'}", "--teachers=[]", "--kd.type=baseline",
        "--model={name: cifar_resnet8}", "--no-wandb", "--training.compare_with_baseline=false",
        "--data.train_size=128", "--training.max_epochs=1", "--evaluation.report=false",
    ]  # fmt: skip
    status, printed = script("train_kd.py", *small, ACCELERATE_MIXED_PRECISION="bf16")
    assert status == 0, printed
    assert "mixed precision bf16: the launcher's (ACCELERATE_MIXED_PRECISION)" in printed
    [folder] = (tmp_path / "runs").glob("*-*")
    for file in (folder / "config.yaml", folder / "student" / "config.yaml"):
        assert yaml.safe_load(file.read_text())["training"]["mixed_precision"] == "bf16"
    again, printed = script("train_kd.py", *small, "--training.mixed_precision=bf16", ACCELERATE_MIXED_PRECISION="no")
    assert again == 0 and f"already finished: {folder}" in printed
    other, printed = script("train_kd.py", *small, f"--resume={folder}")
    assert other == 2 and "training.mixed_precision" in printed
    status, printed = script(
        "evaluate_kd.py", "--checkpoint", str(folder), "--no-wandb", ACCELERATE_MIXED_PRECISION="fp16"
    )
    assert status == 0, printed
    assert "bf16, as the settings say; the launcher's fp16" in printed


def test_accelerates_config_file_is_applied_as_its_launcher_does(tmp_path):
    file = tmp_path / "accelerate.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nuse_cpu: true\n"
        "num_machines: 1\nnum_processes: 1\n"
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    done = subprocess.run([*launcher, "train_kd.py", "--print-config"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["training"]["mixed_precision"] == "bf16"


@pytest.mark.parametrize("name", ["train_kd.py", "evaluate_kd.py"])
def test_both_scripts_refuse_before_they_read_data(name, tmp_path):
    from small_students import make_student

    words = [] if name == "train_kd.py" else ["--checkpoint", str(make_student(tmp_path / "s", "cifar_resnet20"))]
    (tmp_path / "c.yaml").write_text(f"data: {{source: parquet, path: {tmp_path / 'nowhere'}}}")
    config = str(tmp_path / "c.yaml")
    status, printed = script(name, *words, "--config", config, "--no-wandb", ACCELERATE_USE_FSDP="true")
    assert status == 2 and "FSDP (ACCELERATE_USE_FSDP=true)" in printed, printed
    assert "Traceback" not in printed and "nowhere" not in printed


# ------------------------------------------------------------------------------------------- meeting the others

MEET = """
import sys
from kd_core.loop import processes, signals
from kd_core.run import script
signals.QUIET_SECONDS = 0.1
script.run_script(lambda words: processes.create_accelerator(None), "meet.py")
"""


def one_of_two(home: Path, rank: int, port: int, code: str = MEET) -> WarmProcess:
    ranks = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    (home / "meet.py").write_text(code)
    return WarmProcess([str(home / "meet.py")], env={**os.environ, **ranks, "MASTER_PORT": str(port)})


@pytest.mark.parametrize(
    ("number", "status", "rank"),
    [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 0), (signal.SIGUSR1, 138, 0), (signal.SIGTERM, 143, 1)],
)
def test_a_process_that_waits_for_others_ends_at_the_first_signal(tmp_path, number, status, rank):
    port = free_port()
    process = one_of_two(tmp_path, rank, port)
    waiting = f"waiting for the other processes at 127.0.0.1:{port}"
    wait_for(lambda: waiting in process.printed, "its message", process)
    assert f"{waiting} (process {rank} of 2)\n" in process.printed
    process.send_signal(number)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == status
    assert f"stopped by {number.name}, {waiting}\n" in told


def test_a_port_that_is_taken_is_one_message(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = one_of_two(tmp_path, 0, port)
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 2, told
    assert re.search(rf"^meet.py: MASTER_ADDR, MASTER_PORT: .* cannot meet at 127.0.0.1:{port}: ", told, re.M)
    assert "Traceback" not in told


CHOOSE = """
import os
from kd_core.errors import UserError
from kd_core.loop import processes

def choose(device):
    assert os.environ["RANK"] == "0", "the first process decides"
    if asked:
        raise UserError("no such network")
    asked.append(device.type)
    return "bf16"

asked = []
print(processes.create_accelerator("auto", choose=choose).mixed_precision)
try:
    processes.create_accelerator("auto", choose=choose)
except UserError as error:
    print(error)
"""


def test_the_gpu_that_a_variable_names_is_the_current_one(monkeypatch):
    """Events and measures of memory are of the current device."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(processes, "PartialState", lambda **_: SimpleNamespace(device=torch.device("cuda", 1)))
    monkeypatch.setattr(processes, "Accelerator", lambda **_: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    processes.create_accelerator("no")
    assert chosen == [torch.device("cuda", 1)]


def test_a_run_is_deterministic_only_if_it_asks_for_it(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for wanted in (True, False):  # one after the other in a process
        processes.create_accelerator("no", deterministic=wanted)
        assert torch.are_deterministic_algorithms_enabled() == wanted


def test_the_first_process_chooses_the_precision_of_all(tmp_path):
    port = free_port()
    both = [one_of_two(tmp_path, rank, port, CHOOSE) for rank in (0, 1)]
    for process in both:
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and told.endswith("bf16\nno such network\n"), told


def test_the_slurm_job_of_the_docs_ends_by_a_signal_that_torchrun_passes_on(monkeypatch):
    monkeypatch.delenv("PET_SIGNALS_TO_HANDLE", raising=False)
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    name, seconds = re.search(r"#SBATCH .*--signal=(\w+)@(\d+)", page).groups()
    words = ["--shutdown-timeout", re.search(r"--shutdown-timeout (\d+)", page)[1], "train_kd.py"]
    options = run.get_args_parser().parse_args(words)
    assert f"SIG{name}" in options.signals_to_handle.split(",")
    assert 60 < options.shutdown_timeout < int(seconds), "time for a checkpoint, and the end before SLURM's"
