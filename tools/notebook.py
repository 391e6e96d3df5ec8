# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run a notebook of docs/ without Jupyter, for the site and for a test.

Notebooks are kept without their results, so that these cannot be out of date.
"""

from __future__ import annotations

import ast
import json
import os
from html import escape
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple


def run(path: Path, names: Dict[str, Any]) -> Iterator[Tuple[str, str, Any]]:
    """Run the cells of a notebook in order, in its own directory as Jupyter does.

    :param names: global names of the code, which the cells add to.
    :return: for each cell its kind (``markdown`` or ``code``), its text, and the value of its last
        expression, which is what Jupyter would show; None if there is none.
    """
    before = os.getcwd()
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        kind, text = cell["cell_type"], "".join(cell["source"])
        os.chdir(path.parent)
        try:
            value = _value(text, f"{path.name}[{number}]", names) if kind == "code" else None
        finally:
            os.chdir(before)
        yield kind, text, value


def _value(code: str, name: str, names: Dict[str, Any]) -> Any:
    tree = ast.parse(code, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), name, "eval"), names)


def html(value: object) -> str:
    """The HTML that Jupyter would show for a value."""
    own = getattr(value, "_repr_html_", None)
    return str(own()) if own else f"<pre>{escape(repr(value))}</pre>"


def page(path: Path) -> str:
    """The notebook as a page of MyST Markdown, with what its cells show."""
    parts = []
    for kind, text, value in run(path, {}):
        parts.append(text if kind == "markdown" else f"```python\n{text}\n```")
        if value is not None:
            parts.append(f"```{{raw}} html\n{html(value)}\n```")
    return "\n\n".join(parts) + "\n"
