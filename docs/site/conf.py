# SPDX-License-Identifier: LGPL-2.1-or-later
"""How Sphinx makes the site from the pages that tools/gen_site.py has put together."""

from kvintro.version import __version__

project = "kvintro"
copyright = "the kvintro contributors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"kvintro {__version__}"
html_static_path: "list[str]" = []
# Blocks without a language are output of commands.
highlight_language = "none"
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Nothing is fetched while the site is made or read.
html_use_opensearch = ""
