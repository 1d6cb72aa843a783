"""Sphinx: the directives ``public-names`` and ``command-line``, and where roles in docstrings point to."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import public_names
import typer
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import intersphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

# Members of these are not ours; those of our own private bases are shown with the class that has them.
OTHERS = (
    "ABC, BaseException, Callback, Exception, Generic, LightningModule, Mapping, Metric, Module, Protocol, "
    "Sequence, Trainer, dict, list, object, tuple"
)

# How we write names of others, and how they are found in the inventories.
WRITTEN_AS = {
    "ArrayLike": "numpy.typing.ArrayLike",
    "Axes": "matplotlib.axes.Axes",
    "Figure": "matplotlib.figure.Figure",
    "NDArray": "numpy.ndarray",
    "Path": "pathlib.Path",
    "Tensor": "torch.Tensor",
    "np.float64": "numpy.float64",
    "numpy.typing.ArrayLike": "numpy.typing.ArrayLike",
    "torchmetrics.metric.Metric": "torchmetrics.Metric",
}
WIDTH = 90  # of the command line's help


class _Generated(SphinxDirective):
    """A directive whose content are lines that we write."""

    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, self.get_location()), node)
        return node.children


class PublicNames(_Generated):
    """The docstring of a module and everything in its ``__all__``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (module,) = self.arguments
        entries, links = [], []
        for each in public_names.names_of(module):
            path, place = public_names.described()[public_names.home(each)]
            if place == module:
                entries += _entry(path, each.value)
            else:
                links.append((f":py:obj:`{each.name} <{path}>`", _summary(each.value)))
        if module == public_names.PACKAGE:
            elsewhere = [f"* {link}: {said}" for link, said in links]
        else:
            listed = ", ".join(link for link, _ in links)
            elsewhere = [f"``{module}`` also exports {listed}, described elsewhere."] if links else []
        return self.parsed([f".. automodule:: {module}", "", *elsewhere, "", *entries])


def _summary(value: object) -> str:
    """The first paragraph of a docstring, without links: they mean something beside their module only."""
    first = " ".join((value.__doc__ or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`~?([^`]*)`", r"``\1``", first)


class CommandLine(_Generated):
    """What every subcommand prints when it is asked for help."""

    def run(self) -> list[nodes.Node]:
        from lightning_pce.cli._app import app

        program = typer.main.get_command(app())
        above = program.make_context("lightning-pce", [], resilient_parsing=True, terminal_width=WIDTH)
        lines = _shown(above)
        for name, command in program.commands.items():
            lines += [name, "-" * len(name), ""]
            lines += _shown(command.context_class(command, info_name=name, parent=above))
        return self.parsed(lines)


def _shown(context: Any) -> list[str]:
    text = f"$ {context.command_path} --help\n{context.get_help()}"
    return ["::", "", *(f"   {line}" for line in text.splitlines()), ""]


def _entry(path: str, value: object) -> list[str]:
    if inspect.isclass(value):
        members = ["   :members:", f"   :inherited-members: {OTHERS}"]
        # Of a field that says nothing itself Python says "Alias for field number 0".
        said = {name for _, name in ModuleAnalyzer.for_module(value.__module__).find_attr_docs()}
        silent = [name for name in getattr(value, "_fields", ()) if name not in said]
        return [f".. autoclass:: {path}", *members, f"   :exclude-members: {', '.join(silent)}", ""]
    if callable(value):
        return [f".. autofunction:: {path}", ""]
    module, _, name = path.rpartition(".")
    lines = [f".. py:data:: {name}", f"   :module: {module}", f"   :value: {value!r}", ""]
    return [*lines, *(f"   {line}" for line in [*_import_line(path), *_said_of(name)]), ""]


def _said_of(name: str) -> list[str]:
    """The docstring below a constant, in the module that assigns it."""
    for each in sorted(sys.modules):
        if each.startswith(public_names.PACKAGE):
            said = ModuleAnalyzer.for_module(each).find_attr_docs().get(("", name))
            if said:
                return said
    return []


def _import_line(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    return [".. code-block:: python", "", f"   from {module} import {name}", ""]


def _kept(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    # Below a field Google's style would read "The rank: of ..." as a type. Ours are in the annotations.
    if what in ("attribute", "property"):
        app.env.temp_data[name] = GoogleDocstring(lines, app.config, app, "method").lines()


def _with_its_import(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    lines[:] = app.env.temp_data.pop(name, lines)
    if what in ("class", "function") and name in public_names.targets():
        lines[:0] = _import_line(name)


def _readable(
    app: Sphinx, what: str, name: str, value: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    # What dataclasses show of a default that is made each time is no Python, and nobody could parse the rest.
    return (signature.replace("<factory>", "..."), returns) if signature else None


def _found(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """What a role means that names a public object by another import or its bare name, or a member of it."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    here = f"{node.get('py:module')}.{target}"
    if here in public_names.targets():
        node["reftarget"] = target = here
    if target in WRITTEN_AS:
        node["reftarget"], node["reftype"] = WRITTEN_AS[target], "obj"
        return intersphinx.missing_reference(app, env, node, content)
    head, tail = target, ""
    while head:
        path = public_names.targets().get(head) or public_names.unique().get(head)
        if path and path + tail != target:
            domain, page = env.domains["py"], node["refdoc"]
            return domain.resolve_xref(env, page, app.builder, "obj", path + tail, node, content)
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("command-line", CommandLine)
    # Before and after Google's style is read.
    app.connect("autodoc-process-docstring", _kept, priority=100)
    app.connect("autodoc-process-docstring", _with_its_import, priority=900)
    app.connect("autodoc-process-signature", _readable)
    app.connect("missing-reference", _found)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
