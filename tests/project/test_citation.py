"""CITATION.cff says what is true of this version. It was checked by cffconvert, which is not needed here."""

import yaml

from lightning_pce import __version__
from tests.helpers.pages import ROOT


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"authors", "cff-version", "message", "title"} <= set(cited)  # what the format requires
    assert cited["version"] == __version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'name = "{cited["title"]}"' in project
    assert f'license = "{cited["license"]}"' in project
