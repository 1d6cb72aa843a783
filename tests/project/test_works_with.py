"""docs/works_with.md: each row names a test that exists, or says when it was tried by hand and with what."""

import re

import pytest

from tests.helpers.pages import ROOT, collected_tests, named_tests

PAGE = (ROOT / "docs" / "works_with.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| (?!with \|)", line)]
NAMED = named_tests(PAGE)
BY_HAND = r"by hand on \d{4}-\d\d-\d\d with [\w-]+ \d+\.\d+"


def test_every_row_is_read():
    assert len(ROWS) > 20
    assert len({row[0] for row in ROWS}) == len(ROWS)
    assert all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_row_names_a_test_or_who_tried_it_by_hand(row):
    _, answer, shown_by = row
    assert answer.endswith(".")
    assert re.fullmatch(rf"(`tests/[\w/]+\.py::test_\w+` ?)+|{BY_HAND}.*", shown_by)


def test_what_was_tried_by_hand_has_a_day_and_a_version():
    assert PAGE.count("by hand") == len(re.findall(BY_HAND, PAGE)) >= 4


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_every_named_test_exists(path):
    missing = {name for named, name in NAMED if named == path} - collected_tests(path)
    assert not missing


def test_no_name_escapes_the_check_by_its_form():
    assert PAGE.count("::") == len(NAMED)
