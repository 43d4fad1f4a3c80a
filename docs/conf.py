"""The documentation site: `make docs` builds it into build/docs. No page asks another host for anything."""

from __future__ import annotations

import circuitfind

project = "circuitfind"
author = "circuitfind contributors"
copyright = author  # noqa: A001  (the name is Sphinx's)
version = release = circuitfind.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

highlight_language = "none"  # a block says what it is, or it is plain

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"circuitfind {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
