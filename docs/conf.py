"""Sphinx builds the documentation from this: ``sphinx-build -W docs build/docs``. Nothing is fetched, now or when it is read."""

import inspect
import os
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
suppress_warnings = ["ref.python"]  # a word such as "classes" is an attribute of more than one class

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
napoleon_use_ivar = True  # attributes are described in their class, not as entries of their own
default_role = "literal"  # single backticks are code, as in Markdown
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


def generate() -> None:
    """Write what the registries and the commands say of themselves, so that no page repeats it by hand."""
    os.environ["COLUMNS"], os.environ["NO_COLOR"] = (
        "110",
        "1",
    )  # how wide argparse writes, and that it writes no colours
    import episodes.cli.options
    import fewshot_nam.cli.options
    import fewshot_nam.cli.sequence_results
    import fewshot_nam.cli.train_agent
    import fewshot_nam.cli.train_sequence
    from episodes.data import registry as data_sets
    from episodes.metrics.registry import MEASURES
    from fewshot_nam.heads.open_scores import registry as open_scores
    from fewshot_nam.heads.registry import specs
    from fewshot_nam.sequences import models, tasks

    def write(name: str, text: str) -> None:
        path = HERE.parent / "build" / "generated" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def table(*rows: tuple[str, ...]) -> str:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"

    def base(spec) -> str:
        return (
            "used"
            if spec.needs == "nothing" and spec.uses_base
            else {"nothing": "", "mean": "mean"}.get(spec.needs, spec.needs)
        )

    write(
        "heads",
        table(
            ("`--heads`", "what it is", "base classes", "ONNX"),
            *(
                (f"`{spec.name}`", spec.summary, base(spec), "yes" if spec.exports else "")
                for spec in specs()
                if not spec.transductive
            ),
        ),
    )
    write(
        "heads_transductive",
        table(
            ("`--heads`", "what it is", "base classes"),
            *((f"`{spec.name}`", spec.summary, base(spec)) for spec in specs() if spec.transductive),
        ),
    )
    write(
        "open_scores",
        table(
            ("`--score`", "what it is", "base classes"),
            *((f"`{one.name}`", one.summary, "images" if one.needs_base else "used") for one in open_scores.specs()),
        ),
    )
    write(
        "data_sets",
        table(("`--dataset`", "what it is"), *((f"`{one.form}`", one.summary) for one in data_sets.entries())),
    )
    write(
        "measures",
        table(
            ("measure", "better", "protocols", "what it is"),
            *((f"`{one.name}`", one.better, ", ".join(one.protocols), one.meaning) for one in MEASURES.values()),
        ),
    )
    for name, found in (("tasks", tasks.available()), ("models", models.available())):
        write(name, table(("name", "what it is"), *((f"`{one}`", summary) for one, summary in found.items())))
    for name, parser in (
        ("fewshot-nam", fewshot_nam.cli.options.parser()),
        ("fewshot-nam-eval", episodes.cli.options.parser()),
        ("train_sequence.py", fewshot_nam.cli.train_sequence.parser()),
        ("train_agent.py", fewshot_nam.cli.train_agent.parser()),
        ("sequence_results.py", fewshot_nam.cli.sequence_results.parser()),
    ):
        parser.prog = name
        write(name, f"```text\n{parser.format_help()}```\n")


generate()

intersphinx_mapping = {
    "torch": ("https://docs.pytorch.org/docs/stable/", inventory("torch")),
    "sklearn": ("https://scikit-learn.org/stable/", inventory("sklearn")),
    "python": ("https://docs.python.org/3/", inventory("python")),
}


def mathml(tex: str, block: bool) -> str:
    """Return an equation as MathML, which browsers draw by themselves: no script, no font from elsewhere."""
    named = "as_block" in inspect.signature(tex2mathml).parameters  # docutils 0.22 and later
    return tex2mathml(tex, **({"as_block": block} if named else {"inline": not block}))


def setup(app):
    """Have equations written as MathML."""

    def inline(translator, node):
        translator.body.append(mathml(node.astext(), block=False))
        raise nodes.SkipNode

    def display(translator, node):
        translator.body.append(f'<div class="math">{mathml(node.astext(), block=True)}</div>')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (display, None))
