"""The pages of docs/, the tests that they name, and which tests there are."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def written_pages():
    """The pages of docs/ and its folders, without the reference, which is made of docstrings."""
    pages = [path for path in DOCS.rglob("*.md") if "reference" not in path.relative_to(DOCS).parts]
    return sorted(pages)


def named_tests(text):
    """Pairs of path and test, for each `tests/path.py::test_name`."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


def collected_tests(path):
    """The names of the tests that pytest collects there: functions of the module that begin with test."""
    body = ast.parse((ROOT / path).read_text()).body
    for condition in [node for node in body if isinstance(node, ast.If)]:  # on a version
        body += condition.body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
