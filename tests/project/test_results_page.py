"""The tables of docs/results.md are those that its records give, and records are fit to be published."""

import json
import re

import pytest
import results_page
from PIL import Image

RECORDS = sorted(results_page.RECORDS.glob("*.json"))


def test_the_page_is_up_to_date():
    text = results_page.PAGE.read_text()
    assert results_page.filled_in(text) == text, "run: python tests/tools/results_page.py"


def test_the_plot_can_be_drawn_again(tmp_path):
    results_page.draw(tmp_path)
    with Image.open(tmp_path / "teachers.png") as drawn, Image.open(results_page.RECORDS / "teachers.png") as kept:
        assert drawn.size == kept.size and drawn.getextrema() != ((255, 255),) * len(drawn.getbands())


def test_every_record_has_a_table_and_all_are_small():
    assert {path.stem for path in RECORDS} == {record for record, _ in results_page.TABLES.values()}
    assert sum(path.stat().st_size for path in RECORDS) <= 2 * 2**20


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_names_no_folder_and_says_what_each_run_is(path):
    text = path.read_text()
    assert not re.search(r'"(/|~)', text)
    for run in json.loads(text)["runs"]:
        assert run["epochs"] == run["summary"]["epochs"] and isinstance(run["seed"], int) and run["group"]
