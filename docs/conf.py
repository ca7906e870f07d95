"""How Sphinx builds the documentation: ``make docs``."""

import os
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

import generate_notebook  # noqa: E402 (it is found now)
import generate_reference  # noqa: E402

from layershuffle.version import __version__  # noqa: E402

project = "LayerShuffle"
author = "the LayerShuffle contributors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 4

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_use_ivar = True
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"LayerShuffle {__version__}"
html_static_path = ["static"]
html_css_files = ["tables.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

# Where the workflow publishes the site, it also says where the repository is.
REPOSITORY = "/".join(os.environ.get(name, "") for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"))
COMMIT = os.environ.get("GITHUB_SHA", "main")


def link_repository(app: Sphinx, doctree: nodes.document) -> None:
    """Let links to folders and pages that are not part of the site lead to the repository's host.

    A build elsewhere names the folder or page behind the text of the link. MyST copies other files, such as results,
    into the site.
    """
    page = Path(app.env.doc2path(app.env.docname))
    for link in list(doctree.findall(pending_xref)):
        target = str(link["reftarget"]) + (".md" if link["refdomain"] == "doc" else "")
        path = (page.parent / target).resolve()
        if link.get("reftype") != "myst" or not path.exists() or path.is_relative_to(DOCS.resolve()):
            continue
        name = str(path.relative_to(ROOT.resolve()))
        if REPOSITORY == "/" and link.astext() == name:
            link.replace_self(nodes.literal(name, name))
        elif REPOSITORY == "/":
            link.replace_self([*link.children, nodes.Text(" ("), nodes.literal(name, name), nodes.Text(")")])
        else:
            address = f"{REPOSITORY}/blob/{COMMIT}/{name}"
            link.replace_self(nodes.reference("", "", *link.children, refuri=address))


def setup(app: Sphinx) -> None:
    """Generate the reference and the notebook's page before Sphinx reads the pages."""
    app.connect("builder-inited", lambda _: generate_reference.write(DOCS / "reference"))
    app.connect("builder-inited", lambda _: generate_notebook.write(DOCS / "examples"))
    app.connect("doctree-read", link_repository)
