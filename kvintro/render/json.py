# SPDX-License-Identifier: LGPL-2.1-or-later
"""JSON: one document per report; addresses as ``"0x..."`` of 16 digits, all other numbers as numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence, cast

from kvintro.model import Address, Report, Row, Section, Size
from kvintro.render.values import names_of

_BATCH = 1 << 10  # rows in one piece of text


def plain(value: object) -> object:
    """Convert a value of a report to types that the json module writes."""
    if isinstance(value, Address):
        return f"0x{value:016x}"
    if isinstance(value, (bool, str, float)) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Report):
        return document(value)
    if isinstance(value, Section):
        return {
            "key": value.key,
            "title": value.title,
            "problem": value.problem or None,
            "report": plain(value.report),
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in names_of(value.__class__)}
    raise TypeError(f"no JSON for {type(value).__name__}")


def document(report: Report) -> Dict[str, object]:
    """Convert the report to one document."""
    return {key: plain(value) for key, value in _members(report).items()}


def _members(report: Report) -> Dict[str, object]:
    """The members of the document, not converted."""
    return {
        "schema": f"kvintro.{report.command}/1",
        "kernel": report.kernel,
        **report.extra,
        **{table.key: table.rows for table in report.tables},
        "notes": report.notes,
        "partial": report.partial,
    }


def ascii_json(value: object, indent: Optional[int] = None) -> str:
    """Format a value of :func:`plain` as printable ASCII, which cannot control a terminal."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def render_json(report: Report) -> Iterator[str]:
    """Format the document as text, in pieces: that of a table with 100,000 rows takes 50 MB."""
    before = "{\n"
    tables = {table.key for table in report.tables}
    for key, value in _members(report).items():
        yield f"{before}  {ascii_json(key)}: "
        if key in tables and len(set(map(type, cast("Sequence[Row]", value)))) == 1:
            yield from _rows(cast("Sequence[Row]", value))
        else:
            yield _indented(value, "  ")
        before = ",\n"
    yield "\n}\n"


def _rows(rows: Sequence[Row]) -> Iterator[str]:
    """Format rows of one type, a column at a time, as :func:`_indented` does."""
    names = names_of(rows[0].__class__)
    form = ",".join(f'\n      "{name}": %s' for name in names)
    before = "["
    for at in range(0, len(rows), _BATCH):
        batch = rows[at : at + _BATCH]
        columns = [_column([getattr(row, name) for row in batch]) for name in names]
        yield before + ",".join(["\n    {" + form % values + "\n    }" for values in zip(*columns)])
        before = ","
    yield "\n  ]"


def _column(values: Sequence[Any]) -> Iterable[str]:
    kinds = set(map(type, values))
    if kinds == {Address}:
        return ['"0x%016x"' % value for value in values]  # noqa: UP031
    if kinds <= {int, Size}:
        return map(int.__repr__, values)
    # Rows share their other values.
    distinct = {id(value): value for value in values}
    texts = {key: _indented(value, "      ") for key, value in distinct.items()}
    return [texts[id(value)] for value in values]


def _indented(value: object, indent: str) -> str:
    """Format a value whose line begins with an indent."""
    if isinstance(value, (str, int)):
        return ascii_json(plain(value))  # json is slow with an indent
    return ascii_json(plain(value), indent=2).replace("\n", "\n" + indent)
