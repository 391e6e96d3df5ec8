# SPDX-License-Identifier: LGPL-2.1-or-later
"""JSON of reports."""

from __future__ import annotations

import json
from dataclasses import dataclass

from kvintro.model import Address, Displacement, Report, Section, Size, Table
from kvintro.render import render, render_pieces
from kvintro.render.json import document


@dataclass(frozen=True)
class _Mixed:
    start: object
    size: object
    words: object


@dataclass(frozen=True)
class _Other:
    name: str


def test_json_is_what_pythons_own_encoder_writes() -> None:
    """Tables are written a column at a time, in pieces of 1,024 rows."""
    shared = {"4K": 3, "2M": 0}
    few = [
        _Mixed(Address(1), Size(1), ("a", "\x7f\u202e\n")),
        _Mixed(None, True, ()),
        _Mixed(Displacement(-5), 1, shared),
        _Mixed(1.0, False, [Address(2), Size(2), (shared, {})]),
        _Mixed("%s", 10**30, shared),
    ]
    many = [_Mixed(Address(i << 12), Size(i), "%d") for i in range(2050)]
    tables = [
        Table("few", (), few),
        Table("many", (), many),
        Table("exact", (), many[:1024]),
        Table("both", (), [few[0], _Other("x")]),
        Table("none", (), []),
        Table("replaced", (), [_Other("\\n")]),
    ]
    inner: Report = Report("layout", None, [Table("rows", (), few)])
    sections = [Section("one", "One", report=inner), Section("two", "Two", problem="none")]
    extra = {"sections": sections, "replaced": 1, "head": _Other("y"), "numbers": {1: Size(2)}}
    report: Report = Report("show", None, tables, notes=("a note",), extra=extra)
    expected = json.dumps(document(report), indent=2).replace("\x7f", "\\u007f") + "\n"
    assert render(report, "json") == expected
    pieces = list(render_pieces(report, "json"))
    assert "".join(pieces) == expected
    assert max(map(len, pieces)) < len(expected) / 3
