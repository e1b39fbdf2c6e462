"""data.name is the name of a Hub data set: paths are pointed to the keys that take them."""

import datasets
import pytest

from kd_core.config import DataConfig
from kd_core.data.sources import open_source
from kd_core.errors import UserError


def refused(name: str) -> str:
    with pytest.raises(UserError) as caught:
        open_source(DataConfig(name=name))
    return str(caught.value)


@pytest.mark.parametrize("name", ["photos", "./photos", "../photos", "a/../photos", "~/photos", "/nowhere/photos", "."])
def test_a_path_is_no_name_of_the_hub(tmp_path, monkeypatch, name):
    (tmp_path / "home" / "photos" / "train").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    said = refused(name)
    assert said.startswith(f"data.name: {name!r} is a path") and f"--data.path={name} " in said.replace("'", "")
    assert all(f"{source}" in said for source in ("--data.source=imagefolder", "parquet", "disk"))
    exists = name in ("photos", "./photos", "~/photos", ".")
    assert ("there is nothing there" in said) != exists


def test_files_and_names_that_no_file_can_have(tmp_path):
    (tmp_path / "data.zip").touch()
    assert "is a path" in refused(str(tmp_path / "data.zip"))
    assert "there is no user 'no-such-user'" in refused("~no-such-user/x")


def test_names_of_the_hub_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *more, **options: asked.append(name) or {})
    for name in ("uoft-cs/cifar100", "mnist", "me/data.v2"):
        open_source(DataConfig(name=name))
    assert asked == ["uoft-cs/cifar100", "mnist", "me/data.v2"]
