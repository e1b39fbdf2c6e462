"""Fixtures that several test modules share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a network
# Tests run side by side and start further processes: threads that spin while they wait would starve all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_finish() -> None:
    """What the libraries hold, a million objects, is not looked through by every collection of garbage."""
    gc.freeze()


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """A test that calls a script within its process leaves no variable behind: KD_SWEEP would move others' notes."""
    before = dict(os.environ)
    yield
    for name in (os.environ.keys() | before.keys()) - {"PYTEST_CURRENT_TEST"}:  # which pytest changes and removes
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


LONG = (  # the modules that take longest
    "test_wandb_server", "test_train_kd", "test_numerics", "test_method_contract", "test_cache", "test_fuzz",
    "test_faults", "test_hot_loop", "test_secrets", "test_write", "test_dry_run", "test_whole_report",
    "test_evaluate_kd", "test_feature_training", "test_benchmarks", "test_own_code", "test_distributed",
    "test_feature_contract", "test_launcher", "test_public_teachers",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first: `--dist loadscope` hands out whole modules, and short ones fill the gaps at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def digits_teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders of two small teachers, trained on digits once for all workers; no test may change them."""
    from kill_campaign import trained_teachers

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of the session, which its workers share
    finished = folder / "digits-teachers"
    with FileLock(f"{finished}.lock"):
        if not finished.exists():
            trained_teachers(folder)
            finished.touch()
    return sorted((folder / "teachers").glob("*-????????"))


@pytest.fixture
def cifar100() -> Path:
    """The folder of CIFAR-100 parquet files; the test is skipped, saying so, where KD_CIFAR100 is not set."""
    folder = os.environ.get("KD_CIFAR100")
    if not folder:
        pytest.skip("KD_CIFAR100 is not set: it names a folder with CIFAR-100's parquet files")
    return Path(folder)


@pytest.fixture
def public_teachers() -> Path:
    """The folder of public CIFAR-100 checkpoints; the test is skipped, saying so, where KD_TEACHERS is not set."""
    folder = os.environ.get("KD_TEACHERS")
    if not folder:
        pytest.skip("KD_TEACHERS is not set: it names a folder with cifar100_resnet20.pth, 32, 44 and 56")
    return Path(folder)
