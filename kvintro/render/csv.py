# SPDX-License-Identifier: LGPL-2.1-or-later
"""CSV: the first table's rows with all their fields, values as in JSON.

A cell is a number, ``true`` or ``false``, a text, words with a space between them, or JSON. The cell of
what is absent is empty.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Iterable, Mapping

from kvintro.model import Address, Report
from kvintro.render.json import ascii_json, plain

# Spreadsheets take a text that begins with one of these signs for a formula, in quotes or not; some the wide
# signs, too. Where a comma is in numbers, they split lines at semicolons, whatever the quotes.
_FORMULA = re.compile('(^|;)(?=["\\s]*[=+@\uff1d\uff0b\uff0d\uff20-])')
_SPECIAL = re.compile(r'[,;"]')
_WORD = re.compile(r"[\w.:/+*<>=-]+")


def cell_text(value: Any) -> str:
    """Any value of a row as the text of a cell, with its quotes."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _quoted(_FORMULA.sub(r"\1'", value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (Address, int, float)):
        return str(plain(value))
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) and _WORD.fullmatch(v) for v in value):
        return cell_text(" ".join(value))
    if isinstance(value, (list, tuple, Mapping)) and not value:
        return ""
    return _quoted(ascii_json(plain(value)).replace(";", "\\u003b"))


def _quoted(text: str) -> str:
    if not _SPECIAL.search(text):
        return text
    return '"' + text.replace('"', '""') + '"'


def csv_line(cells: Iterable[str]) -> str:
    """A line of cells that :func:`cell_text` made."""
    return ",".join(cells) + "\n"


def render_csv(report: Report) -> str:
    """A header line of field names, then a line a row."""
    out = []
    for table in report.tables[:1]:
        for number, row in enumerate(table.rows):
            names = [f.name for f in dataclasses.fields(row)]
            if number == 0:
                out.append(csv_line(names))
            out.append(csv_line(cell_text(getattr(row, name)) for name in names))
    return "".join(out)
