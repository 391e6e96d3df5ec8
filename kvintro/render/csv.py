# SPDX-License-Identifier: LGPL-2.1-or-later
"""CSV: the rows of the first table with all their fields, values as in JSON.

A cell is a number, ``true`` or ``false``, a text, words separated by spaces, or JSON. An absent value is an
empty cell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any, Iterable, List, Sequence

from kvintro.model import Address, Report
from kvintro.render.json import ascii_json, plain
from kvintro.render.values import names_of

# Spreadsheets treat a text that begins with one of these signs as a formula, in quotes or not. Some also
# accept the wide signs. With a decimal comma they split lines at semicolons, even in quotes.
_FORMULA = re.compile('(^|;)(?=["\\s]*[=+@\uff1d\uff0b\uff0d\uff20-])')
_SPECIAL = re.compile(r'[,;"]')
_WORD = re.compile(r"[\w.:/+*<>=-]+")


def cell_text(value: object) -> str:
    """Format any value of a row as a cell, with quotes."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _quoted(_FORMULA.sub(r"\1'", value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (Address, int, float)):
        return str(plain(value))
    if isinstance(value, (list, tuple)):
        words = [v for v in value if isinstance(v, str) and _WORD.fullmatch(v)]
        if len(words) == len(value):
            return cell_text(" ".join(words))
    if isinstance(value, (list, tuple, Mapping)) and not value:
        return ""
    return _quoted(ascii_json(plain(value)).replace(";", "\\u003b"))


def _quoted(text: str) -> str:
    if not _SPECIAL.search(text):
        return text
    return '"' + text.replace('"', '""') + '"'


def csv_line(cells: Iterable[str]) -> str:
    """Join cells of :func:`cell_text` to a line."""
    return ",".join(cells) + "\n"


def csv_cells(values: Sequence[Any]) -> List[str]:
    """Format the values of a column as cells."""
    if set(map(type, values)) == {Address}:
        return ["0x%016x" % value for value in values]  # noqa: UP031
    # Many values are shared.
    distinct = {id(value): value for value in values}
    texts = {key: cell_text(value) for key, value in distinct.items()}
    return [texts[id(value)] for value in values]


def render_csv(report: Report) -> str:
    """A header of field names, then one line per row."""
    out: List[str] = []
    for kind, rows in groupby(report.tables[0].rows, type):
        names, batch = names_of(kind), list(rows)
        if not out:
            out.append(csv_line(names))
        columns = [csv_cells([getattr(row, name) for row in batch]) for name in names]
        out += map(csv_line, zip(*columns))
    return "".join(out)
