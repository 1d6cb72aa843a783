"""What all tests of scoring share."""

import pytest


@pytest.fixture(scope="session")
def _cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def hashes_in_a_cache_of_tests(_cache, monkeypatch):
    """Hashes of models are not kept in the user's cache."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, _cache)
