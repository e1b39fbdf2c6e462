"""The bounds that keep the code readable: lengths, nesting, and which room imports which (tests/tools/house.py)."""

from pathlib import Path

import pytest
from house import ORDER, SCRIPTS, House

import kd_core

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


def test_functions_of_the_scripts_fit_a_screen(house):
    length, name = house.longest(path for path in house.trees if str(path) in SCRIPTS)
    assert length <= 75, name


def test_no_function_is_longer_than_a_page(house):
    length, name = house.longest()
    assert length <= 85, name


def test_blocks_are_nested_four_deep_at_most(house):
    depth, name = house.deepest()
    assert depth <= 4, name


def test_training_imports_few_modules_of_the_project(house):
    found = house.imports_of(Path("train_kd.py"))
    assert len(found) <= 18, sorted(found)


def test_the_listing_of_kd_core_is_short(house):
    assert house.entries() <= 21


def test_no_room_imports_from_one_after_it(house):
    assert house.against_the_order() == []


def test_no_module_imports_itself_through_others(house):
    assert house.circles() == []


def test_benchmarks_pause_a_run_without_threads_and_patches(house):
    assert not house.table()["threads or patches in benchmarks/_runs.py"]


def test_every_module_belongs_to_a_room(house):
    """A folder that the order does not know would otherwise be no room at all."""
    house.against_the_order()  # asks for the rank of each
    modules = {path.parts[1].removesuffix(".py") for path in house.trees if path.parts[0] == "kd_core"}
    assert modules - {"__init__"} <= set().union(*ORDER)


def test_the_page_of_files_is_up_to_date(house):
    """Else: python tests/tools/house.py --files > docs/files.md"""
    page = (house.repo / "docs" / "files.md").read_text(encoding="utf-8")
    assert page == f"{house.files()}\n"


def test_the_order_stands_in_the_package(house):
    """`errors < kd_methods < files, metrics < ...` in kd_core/__init__.py, and names from before the rooms."""
    text = " ".join((kd_core.__doc__ or "").split())
    stated = text.partition("never after: ")[2].partition(".")[0]
    rooms = [set(level.split(", ")) for level in stated.split(" < ")]
    assert rooms == list(ORDER[: len(rooms)])
    assert set().union(*ORDER[len(rooms) :]) >= {"cache", "tracking", "views", "sources", "scripts"}
