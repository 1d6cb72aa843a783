"""docs/traps.md has all 47 traps, and every test that it names exists."""

import re

import pytest

from tests.helpers.pages import ROOT, collected_tests, named_tests

PAGE = (ROOT / "docs" / "traps.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, flags=re.MULTILINE)
NAMED = named_tests(PAGE)


def test_all_traps_are_there_once_and_in_order():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 48))


@pytest.mark.parametrize(("number", "here", "shown_by"), [(row[0], row[2], row[3]) for row in ROWS])
def test_each_trap_says_what_happens_and_names_a_test(number, here, shown_by):
    assert re.search(r"(prevented|error|documented)\b[^:|]*: ", here), number
    assert re.fullmatch(r"(`tests/[\w/]+\.py::test_\w+` ?)+", shown_by), number


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_every_named_test_exists(path):
    missing = {name for named, name in NAMED if named == path} - collected_tests(path)
    assert not missing


def test_no_name_escapes_the_check_by_its_form():
    assert PAGE.count("::") == len(NAMED) > 90
