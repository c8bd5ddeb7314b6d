"""Sphinx builds the documentation from this: ``sphinx-build -W docs build/docs``. Nothing is fetched, now or when it is read."""

import sys
import zlib
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the documentation is of this checkout, installed or not

import fewshot_nam  # noqa: E402

project = "fewshot-nam"
author = "The fewshot-nam authors"
copyright = "2026, the fewshot-nam authors"
release = version = fewshot_nam.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.strikethrough"]

html_theme = "furo"
html_title = f"fewshot-nam {release}"
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_math_renderer = "mathml"
html_show_sourcelink = html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False
add_module_names = False


def inventory(name: str) -> str:
    """Write the inventory of another project's pages from the names that we refer to, and return its path.

    ``inventories/<name>.txt`` has a line for each: its role, the page that it is on, its names. So references to torch and
    scikit-learn are links, and the build needs no network.
    """
    lines = []
    for line in (HERE / "inventories" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            role, page, *objects = line.split()
            lines += [f"{one} {role} 1 {page.format(one)}#$ -\n" for one in objects]
    path = HERE.parent / "build" / "inventories" / f"{name}.inv"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n# The remainder of this file is compressed using zlib.\n"
    path.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
    return str(path)


intersphinx_mapping = {
    "torch": ("https://docs.pytorch.org/docs/stable/", inventory("torch")),
    "sklearn": ("https://scikit-learn.org/stable/", inventory("sklearn")),
    "python": ("https://docs.python.org/3/", inventory("python")),
}


def setup(app):
    """Have equations written as MathML, which browsers draw by themselves: no script, no font from elsewhere."""

    def inline(translator, node):
        translator.body.append(tex2mathml(node.astext(), True))
        raise nodes.SkipNode

    def display(translator, node):
        translator.body.append(f'<div class="math">{tex2mathml(node.astext(), False)}</div>')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (display, None))
