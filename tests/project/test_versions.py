"""pyproject.toml promises no version that `make test-lowest` and `make test-lowest-torch` do not run."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings the original
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def stated_floors():
    extras = PROJECT["optional-dependencies"]
    tested = ("cli", "hf", "parquet", "plot", "tdigest", "test")
    lines = PROJECT["dependencies"] + [line for name in tested for line in extras[name]]
    for requirement in map(Requirement, lines):
        if requirement.name not in ("lightning-pce", "triton"):  # itself, and what torch brings
            (floor,) = [one.version for one in requirement.specifier if one.operator == ">="]
            yield requirement.name, Version(floor)


def pinned_versions():
    constraints = (ROOT / "constraints-lowest.txt").read_text()
    pins = re.findall(r"^([\w-]+)==(\S+)$", constraints, re.MULTILINE)
    pins += re.findall(r"\b(torch)==([\d.]+)", (ROOT / "Makefile").read_text())
    return {name: Version(version) for name, version in pins}


@pytest.mark.parametrize(("name", "floor"), list(stated_floors()), ids=str)
def test_the_lowest_version_allowed_is_the_one_tested(name, floor):
    assert pinned_versions()[name] == floor


def test_both_names_of_lightning_are_of_one_version():
    assert pinned_versions()["lightning"] == pinned_versions()["pytorch-lightning"]
