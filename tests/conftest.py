"""What all tests share: no network, and property tests that repeat themselves."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """In CI nothing may be skipped: what a test needs is installed there."""
    report = yield  # later, in logreport, the session may have counted it already
    if report.skipped and os.environ.get("REQUIRE_ALL"):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def lightning_ranks(tmp_path_factory):
    """The notes of the two ranks of every_scenario.py, which run once for all tests."""
    from tests.helpers.ranks import run_module_on_ranks

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"
    return run_module_on_ranks(folder, "tests.helpers.every_scenario")
