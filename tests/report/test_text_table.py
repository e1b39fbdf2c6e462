"""Tables as text."""

from kd_core.report import text_table

HEADER, ROWS = ["student", "accuracy", "n"], [["vit", "91.00%", "3"], ["a longer name", "", "12"]]


def test_a_terminals_columns_are_aligned():
    assert text_table.terminal(HEADER, ROWS, rule_after=1).splitlines() == [
        "student        accuracy   n",
        "---------------------------",
        "vit              91.00%   3",
        "---------------------------",
        "a longer name            12",
    ]


def test_no_line_ends_in_blanks():
    assert text_table.terminal(["name", ""], [["a", "1"], ["b", ""]]) == "name\n-------\na     1\nb"


def test_markdown_aligns_numbers():
    text = text_table.markdown(HEADER, ROWS)
    assert text.splitlines()[:3] == ["| student | accuracy | n |", "| --- | ---: | ---: |", "| vit | 91.00% | 3 |"]
    assert text_table.markdown(HEADER, [], numbers=False).splitlines()[1] == "| --- | --- | --- |"
