"""What the tests of imports share: files as servers write them, and the record that comes of them."""

import json
import re

import pytest

from lightning_pce._errors import UserError
from lightning_pce.runs.history import History
from lightning_pce.scoring.imports import import_records


def json_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def imported(path, form, **options):
    """The record of a file; that it is read back from one line is part of the test."""
    out = path.with_name("records.jsonl")
    key = import_records(path, form, out, **options)
    (record,) = (each for each in History.load(out) if each.run == key)
    return record


def refused(path, form, words, **options):
    """That a file is refused in one line, with nothing written."""
    out = path.with_name("records.jsonl")
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        import_records(path, form, out, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists()
