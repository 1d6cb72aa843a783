"""docs/traps.md has all 42 traps, and every test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "traps.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, flags=re.MULTILINE)
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def names_in(path):
    """The names of the tests that pytest collects there: functions of the module that begin with test."""
    body = ast.parse((ROOT / path).read_text()).body
    for condition in [node for node in body if isinstance(node, ast.If)]:  # on a version
        body += condition.body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_all_traps_are_there_once_and_in_order():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 43))


@pytest.mark.parametrize(("number", "here", "shown_by"), [(row[0], row[2], row[3]) for row in ROWS])
def test_each_trap_says_what_happens_and_names_a_test(number, here, shown_by):
    assert re.search(r"(prevented|error|documented)\b[^:|]*: ", here), number
    assert re.fullmatch(r"(`tests/[\w/]+\.py::test_\w+` ?)+", shown_by), number


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_every_named_test_exists(path):
    missing = {name for named, name in NAMED if named == path} - names_in(path)
    assert not missing


def test_no_name_escapes_the_check_by_its_form():
    assert PAGE.count("::") == len(NAMED) > 90
