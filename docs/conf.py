"""The site, which `make docs` builds. The root of the repository is its source, not this folder.

So every relative link is the same in the site and where the repository is read.
"""

import sys
from pathlib import Path

import numpy.typing

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_extensions")]

# The union that it is would be spelled out in every signature, over six lines of private names.
numpy.typing.ArrayLike = type("ArrayLike", (), {"__module__": "numpy.typing"})

from lightning_pce import __version__  # noqa: E402  # this checkout's, whatever is installed

project = "lightning-pce"
author = "the authors of lightning-pce"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "reference",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "*/README.md",
    "benchmarks/*/README.md",
]
exclude_patterns = [".*", "build", "dist", "*_out", "lightning_logs", "lightning_pce", "examples", "docs/_*"]
nitpicky = True
nitpick_ignore = [
    # Unions that have a name of their own in signatures; the arguments' descriptions spell them out.
    *(
        ("py:class", name)
        for name in ("Array", "Bounds", "BoundsLike", "Entry", "Group", "Read", "Runs", "TaskLike", "Tensors")
    ),
    # What has no page: the class of another package, and two of ours that nobody makes by hand.
    ("py:class", "TDigest"),
    ("py:class", "lightning_pce.metrics._views.ViewedMetric"),
    ("py:class", "lightning_pce.runs._headers.Payload"),
    ("py:class", "lightning_pce.runs._power_law.Draws"),
]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
maximum_signature_line_length = 80
python_display_short_literal_types = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "  # is not copied, nor what is printed
copybutton_prompt_is_regexp = True

# Without a network the names that we use are found in the small files beside this one.
intersphinx_timeout = 3
intersphinx_mapping = {
    name: (url, (None, f"{DOCS.name}/inventories/{name}.txt"))
    for name, url in {
        "python": "https://docs.python.org/3",
        "numpy": "https://numpy.org/doc/stable",
        "torch": "https://docs.pytorch.org/docs/stable",
        "torchmetrics": "https://lightning.ai/docs/torchmetrics/stable",
        "matplotlib": "https://matplotlib.org/stable",
    }.items()
}

highlight_language = "none"  # what names no language is no Python
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "lightning-pce"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"  # without one browsers ask for /favicon.ico
html_css_files = ["tables.css"]
html_extra_path = ["_root"]
