# SPDX-License-Identifier: LGPL-2.1-or-later
"""CSV: the first table's rows with all their fields, values as in JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

from kvintro.model import Report
from kvintro.render.json import plain
from kvintro.text import printable


def _cell(value: Any) -> Any:
    flat = plain(value)
    if isinstance(flat, dict):
        return " ".join(f"{k}:{v}" for k, v in flat.items())
    if isinstance(flat, list):
        return " ".join(str(v) for v in flat)
    return printable(flat) if isinstance(flat, str) else flat


def render_csv(report: Report) -> str:
    """A header line of field names, then a line a row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for table in report.tables[:1]:
        for number, row in enumerate(table.rows):
            names = [f.name for f in dataclasses.fields(row)]
            if number == 0:
                writer.writerow(names)
            writer.writerow([_cell(getattr(row, name)) for name in names])
    return out.getvalue()
