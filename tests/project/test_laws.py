"""The laws of the house: which folder of the package may import what, read from the source."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = "lightning_pce"
# __init__ names every public object by its home, __main__ is the command line's.
FACE = {HOUSE, f"{HOUSE}._version", f"{HOUSE}.__main__"}
# Which anybody may import.
LEAVES = {f"{HOUSE}.{name}" for name in ("_names", "_checks", "_compiling", "_errors", "_threads")}
SHIMS = {f"{HOUSE}.{name}" for name in ("checkpoints", "exchange", "figures", "plot", "token_stats")}

FOLDERS = {
    "digest": set(),
    "tokens": set(),
    "intervals": {"digest"},
    "metrics": {"digest", "tokens", "intervals"},
    "objectives": {"tokens"},
    "runs": {"digest", "intervals"},
    "reports": {"runs", "intervals", "digest"},
    "integrations": {"digest", "tokens", "intervals", "metrics", "objectives", "runs", "reports"},
    "scoring": {"digest", "tokens", "intervals", "metrics", "objectives", "runs", "integrations"},
}
FOLDERS["cli"] = set(FOLDERS)
LIGHTNING = f"{HOUSE}.integrations.lightning"
TRAINER_INTERNALS = f"{LIGHTNING}.trainer_internals"


class Import(NamedTuple):
    """One import: of which module, and whether it waits until a function is called."""

    name: str
    lazy: bool


def modules():
    """The syntax tree of every module by its dotted name."""
    trees = {}
    for path in sorted((ROOT / HOUSE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        trees[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return trees


def imports_of(tree, lazy=False):
    """All imports below a node, those in functions and for type checkers too; the latter are lazy."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:  # of a module, or of a name in one
                submodule = f"{node.module}.{alias.name}"
                yield Import(submodule if submodule in TREES else node.module, lazy)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            assert isinstance(node.args[0], ast.Constant), (
                f"an import of a computed name: {ast.unparse(node)}"
            )
            yield Import(node.args[0].value, lazy)
        typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports_of(node, lazy or typing or function)


TREES = modules()
IMPORTS = {name: set(imports_of(tree)) for name, tree in TREES.items() if name not in FACE}
OURS = {name: {each.name for each in found if each.name in TREES} for name, found in IMPORTS.items()}
THEIRS = {
    name: {each for each in found if each.name.split(".")[0] != HOUSE} for name, found in IMPORTS.items()
}


def folder(name):
    """The folder of a module: ``metrics`` of ``lightning_pce.metrics.proxies``."""
    return name.split(".")[1]


def in_folders():
    return {name: found for name, found in OURS.items() if name not in LEAVES | SHIMS}


def circle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return None


def test_every_module_lives_in_a_known_folder():
    assert {folder(name) for name in in_folders()} <= set(FOLDERS)
    assert len(in_folders()) > 30


@pytest.mark.parametrize("home", FOLDERS)
def test_a_folder_imports_only_what_the_law_allows(home):
    allowed = FOLDERS[home] | {home}
    broken = [
        f"{name} imports {other}"
        for name, found in in_folders().items()
        if folder(name) == home
        for other in found - LEAVES - {f"{HOUSE}._version"}
        if other in FACE | SHIMS or folder(other) not in allowed
    ]
    assert not broken


def test_leaves_import_nothing_of_ours_and_torch_at_most():
    for leaf in LEAVES & set(IMPORTS):
        outside = {each.name.split(".")[0] for each in IMPORTS[leaf]} - sys.stdlib_module_names
        assert outside <= {"torch"}, leaf


def test_there_is_no_circle_between_folders():
    graph = {home: set() for home in FOLDERS}
    for name, found in in_folders().items():
        graph[folder(name)] |= {folder(other) for other in found - LEAVES - FACE} - {folder(name)}
    assert circle(graph) is None


def test_there_is_no_circle_between_modules():
    assert circle(OURS) is None


def test_lightning_is_imported_under_its_integration_only():
    for name, found in THEIRS.items():
        if not f"{name}.".startswith(f"{LIGHTNING}."):
            roots = {each.name.split(".")[0] for each in found}
            assert not roots & {"lightning", "pytorch_lightning", "lightning_fabric"}, name


def test_torchmetrics_is_imported_by_metrics_and_integrations_only():
    for name, found in THEIRS.items():
        if any(each.name.split(".")[0] == "torchmetrics" for each in found):
            assert folder(name) in ("metrics", "integrations"), name


def test_optional_packages_are_imported_where_they_are_used():
    project = (ROOT / "pyproject.toml").read_text()
    required = re.search(r"^dependencies = \[(.*?)^\]", project, flags=re.DOTALL | re.MULTILINE)[1]
    always = set(re.findall(r'^  "(\w+)', required, flags=re.MULTILINE)) | sys.stdlib_module_names
    assert {"torch", "numpy", "torchmetrics", "lightning"} <= always
    ours_at_once = {each.name for found in IMPORTS.values() for each in found if not each.lazy}
    for name, found in THEIRS.items():
        at_once = {each.name.split(".")[0] for each in found if not each.lazy} - always
        # A module that ours import in functions only may do so, as kernels/triton.py does.
        assert not at_once or name not in ours_at_once, (name, at_once)


def private_chains(tree):
    """Chains like ``trainer.fit_loop._combined_loader``: a private attribute of a trainer or a loop."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = ast.unparse(node).split(".")
            start = names[1:] if names[0] == "self" else names
            private = [each for each in start[1:] if re.match(r"_(?!_)", each)]
            if start[:1] and re.fullmatch(r"(pl_)?trainer|\w*loop", start[0]) and private:
                yield ast.unparse(node)


def test_only_trainer_internals_touches_private_attributes_of_a_trainer():
    private = {name: sorted(set(private_chains(tree))) for name, tree in TREES.items()}
    assert private.pop(TRAINER_INTERNALS)  # or this test sees none
    assert {name: chains for name, chains in private.items() if chains} == {}
