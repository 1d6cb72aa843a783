"""The pages of the site, as far as they can be seen without building it; test_docs_build.py builds it."""

import ast
import importlib.util
import inspect
import re
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_pce import digest, intervals
from tests.helpers.pages import DOCS, ROOT, written_pages


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


public_names = loaded(DOCS / "_extensions/public_names.py")
gallery = loaded(DOCS / "gallery.py")
pictures = loaded(DOCS / "pictures.py")


def text(path):
    return path.read_text(encoding="utf-8")


def test_every_public_module_is_on_one_page_of_the_reference():
    pages = [text(path) for path in (DOCS / "reference").glob("*.md")]
    shown = [
        name for page in pages for name in re.findall(r"^\.\. public-names:: (\S+)$", page, re.MULTILINE)
    ]
    assert sorted(shown) == sorted(public_names.modules())
    assert {"lightning_pce", "lightning_pce.metrics", "lightning_pce.runs.history"} <= set(shown)


def test_what_every_module_exports_is_there_and_described_once():
    for module in public_names.modules():
        names = [each.name for each in public_names.names_of(module)]
        assert len(set(names)) == len(names) > 0
        for each in public_names.names_of(module):
            at = public_names.described()[public_names.home(each)]
            assert each.name in [other.name for other in public_names.names_of(at.place)], each
    paths = [path for path, _ in public_names.described().values()]
    assert len(set(paths)) == len(paths) > 100
    assert "lightning_pce.PercentileCrossEntropy" in paths
    assert "lightning_pce.digest.quantile" in paths


def imports():
    """The names of ours that the code of README.md and docs/ imports, each as its module and itself."""
    for path in [ROOT / "README.md", *written_pages()]:
        for block in re.findall(r"^```python\n(.*?)^```", text(path), flags=re.MULTILINE | re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lightning_pce":
                    yield from ((path.name, node.module, alias.name) for alias in node.names)


def test_pages_import_public_names_only():
    found = set(imports())
    assert len(found) > 40
    for page, module, name in found:
        is_module = f"{module}.{name}" in public_names.modules()
        exported = module in public_names.modules() and name in import_module(module).__all__
        assert is_module or exported, f"{page}: from {module} import {name}"


def test_every_page_is_in_the_menu_once():
    menus = re.findall(r"^:::\{toctree\}\n(.*?)^:::", text(DOCS / "index.md"), re.MULTILINE | re.DOTALL)
    lines = [line for menu in menus for line in menu.splitlines() if line and line[0] != ":"]
    names = [re.sub(r".*<(.*)>", r"\1", line) for line in lines]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(name for name in names if not name.startswith("../")) == sorted(pages - {"index"})
    assert all((DOCS / f"{name}.md").is_file() for name in names)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The sizes of the pictures that the gallery's code leaves behind, without a browser for its page."""
    folder = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "photograph", lambda page, target: target.write_bytes(page.read_bytes()))
        gallery.make(folder)
    return {path.name: path.stat().st_size for path in folder.glob("*.png")}


def test_the_gallery_shows_what_its_code_draws(drawn):
    shown = re.findall(r"^!\[[^]]+\]\(gallery/(.*)\)$", text(DOCS / "gallery.md"), re.MULTILINE)
    assert sorted(drawn) == sorted(shown) == sorted(path.name for path in gallery.PICTURES.iterdir())
    assert all(size > 5_000 for size in drawn.values())
    assert all(5_000 < (gallery.PICTURES / name).stat().st_size < 100_000 for name in shown)


def test_no_line_of_a_page_begins_as_a_comment():
    """In MyST a line that begins with % is left out, as of a paragraph that was wrapped before a per cent."""
    for page in [*written_pages(), *ROOT.glob("benchmarks/**/README.md")]:
        prose = re.sub(r"^```.*?^```", "", text(ROOT / page), flags=re.MULTILINE | re.DOTALL)
        assert re.findall(r"^\s*%.*$", prose, re.MULTILINE) == [], page


def small(path):
    """A picture in 64 by 48 shades of grey."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L").resize((64, 48), Image.Resampling.BOX), dtype=float)


def test_how_it_works_shows_what_its_script_draws(tmp_path):
    pages = "".join(text(path) for path in pictures.PICTURES.glob("*.md"))
    shown = re.findall(r"^!\[[^]]+\]\((.*)\)$", pages, re.MULTILINE)
    pictures.make(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(shown) == sorted(path.name for path in pictures.PICTURES.glob("*.png"))
    for name in drawn:
        committed = pictures.PICTURES / name
        assert 5_000 < committed.stat().st_size < 60_000
        # Other versions of matplotlib place texts and ticks a little elsewhere.
        assert abs(small(tmp_path / name) - small(committed)).mean() < 3, name


def test_how_it_works_says_what_is_in_its_numbers():
    values = pictures.losses()
    assert values.shape == (78, 64)
    assert len(intervals.slots_of(torch.arange(78)).unique()) == 55
    q = np.linspace(0.01, 0.99, 99)
    for compression, worst in ((pictures.SMALL, 0.0044), (1024, 0.0005)):
        few = digest.from_values(values.flatten(), compression=compression)
        errors = pictures.rank_errors(values.flatten(), digest.quantile(few, torch.from_numpy(q)), q)
        assert round(errors.max(), 4) == worst


def test_every_picture_is_in_the_gallery():
    from lightning_pce.reports import plot

    helpers, page = {"kendall_tau_b", "new_axes"}, text(DOCS / "gallery.md")
    assert [name for name in plot.__all__ if name not in helpers and f"plot.{name}" not in page] == []


def test_every_public_function_has_an_example():
    elsewhere = {"write_start", "write_validation"}  # in that of write_checkpoint
    elsewhere |= {"evaluate"}  # of models on a disk; docs/evaluate.md has the command
    elsewhere |= {"from_tdigest", "to_tdigest"}  # of a package that need not be there; on the page of streams
    missing = set()
    for path, _ in public_names.described().values():
        module, _, name = path.rpartition(".")
        value = getattr(import_module(module), name)
        if inspect.isfunction(value) and ">>>" not in (value.__doc__ or ""):
            missing.add(name)
    assert missing == elsewhere
