"""What the studies write their pages with."""

import pytest

from benchmarks.studies.markdown import (
    interval,
    number,
    out_of,
    percent,
    percent_interval,
    percent_spread,
    spread,
    table,
    with_section,
)

PAGE = "# Page\n\n<!-- one begin -->\nold\n<!-- one end -->\n\n<!-- two begin --><!-- two end -->\n"


def test_a_section_is_replaced_and_nothing_else():
    page = with_section(PAGE, "one", "\nnew\n")
    assert page == PAGE.replace("\nold\n", "\n\nnew\n\n")
    assert with_section(page, "one", "new") == page
    assert with_section(page, "two", "2").startswith(page.partition("<!-- two begin -->")[0])


@pytest.mark.parametrize("page", ["", "<!-- one end --> <!-- one begin -->", PAGE + PAGE])
def test_a_page_without_the_place_is_refused(page):
    with pytest.raises(ValueError, match="one begin"):
        with_section(page, "one", "new")


def test_columns_of_numbers_stand_on_the_right():
    assert table(["run", "loss", "x"], [["a", "4.1 [3, 5]", "-"], ["b", "-0.2", "b"]]) == (
        "| run | loss | x |\n| --- | ---: | --- |\n| a | 4.1 [3, 5] | - |\n| b | -0.2 | b |\n"
    )
    assert table(["run"], []) == "| run |\n| --- |\n"
    rows = [[str(row)] for row in range(13)]
    assert table(["run"], rows[:12]).startswith("| run |")
    long = table(["run"], rows)
    assert long.startswith("<details>\n<summary>A table of 13 rows</summary>\n\n| run |")
    assert long.endswith("| 12 |\n\n</details>\n")
    with pytest.raises(ValueError, match="2 columns, but a row of 1"):
        table(["a", "b"], [["1"]])


def test_numbers():
    assert [number(4.275), number(-0.001), number(None), number(1.26, 1)] == ["4.28", "0.00", "-", "1.3"]
    assert interval(0.5, 0.4, 0.62) == "0.50 [0.40, 0.62]"
    assert interval(0.5, None, None, 1) == "0.5"
    assert [percent(0.983), percent(0.983, 1), percent(None)] == ["98 %", "98.3 %", "-"]
    assert percent_interval(0.98, 0.93, 1.0) == "98 % [93, 100]"
    assert spread([1.0, 3.0, None]) == "2.00 (1.00 to 3.00)"
    assert [spread([1.0]), spread([1.0, 1.001]), spread([None])] == ["1.00", "1.00", "-"]
    assert percent_spread([0.91, 0.97]) == "94 % (91 to 97)"
    assert [percent_spread([0.5]), percent_spread([])] == ["50 %", "-"]
    assert out_of(3, 20) == "3 of 20"
