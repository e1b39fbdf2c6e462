"""Files and folders that several processes want at the same time."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kd_core.errors import UserError
from kd_core.files import check_writable, writable_folder


def test_many_processes_may_check_and_create_one_folder_at_once(tmp_path):
    """Processes of one run, or trials of one sweep, that start together."""
    for number in range(20):
        folder = tmp_path / str(number) / "a" / "b"
        with ThreadPoolExecutor(8) as pool:
            checks = [pool.submit(check_writable, folder, "output_dir") for _ in range(16)]
            makes = [pool.submit(writable_folder, folder, "output_dir") for _ in range(4)]
        for done in checks + makes:
            done.result()
        assert folder.is_dir() and not list(folder.iterdir())


def test_checking_creates_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b", "output_dir")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("check", [check_writable, writable_folder])
def test_a_folder_that_cannot_be_is_named_with_its_key(tmp_path, check):
    (tmp_path / "file").touch()
    places = [tmp_path / "file" / "under", Path("/proc/nowhere/at/all")]
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked" / "under")
    for place in places:
        with pytest.raises(UserError, match=f"cache.dir: cannot write to {place}: "):
            check(place, "cache.dir")
