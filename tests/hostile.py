# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hostile strings that a dump may contain in place of names, and reports full of them."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from typing import Any

from kvintro.model import Address, Displacement, Report, Section, Size

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</script></style></title>]]>{{7*7}}{% raw %}\x1b[31m\x00\u202e&quot;'\"`"
)

#: The escape sequences that kvintro itself writes: SGR codes of its colours.
OWN_PAINT = re.compile(r"\x1b\[(?:1;)?(?:[1247]|3[0-7]|38;5;\d+|0)m")


def assert_inert(text: str) -> None:
    """Assert that lines contain only printable characters, each one column wide and left to right."""
    for char in set(text) - {"\n"}:
        assert char.isprintable(), f"not printable: {char!r}"
        assert unicodedata.category(char)[0] != "M", f"a mark: {ord(char):#x}"
        assert unicodedata.bidirectional(char) not in ("R", "AL", "AN"), f"right to left: {ord(char):#x}"
        assert char not in "\u115f\u1160\u2800\u3164\uffa0\U0001f3fb", f"a filler: {ord(char):#x}"


def poisoned(value: Any, text: str = HOSTILE) -> Any:
    """A value of a report, with all strings that can come from a kernel replaced by a hostile one.

    Names of tables, columns and sections are our own, and unchanged.
    """
    if isinstance(value, (Address, Size, Displacement)):
        return value
    if isinstance(value, str):
        return text
    if isinstance(value, dict):
        return {k: poisoned(v, text) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(poisoned(v, text) for v in value)
    if isinstance(value, Report):
        return poisoned_report(value, text)
    if isinstance(value, Section):
        return dataclasses.replace(
            value, report=poisoned(value.report, text), problem=text, text=(text,), title=text
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keep = {"key", "state", "kind", "region"}
        return dataclasses.replace(
            value,
            **{
                f.name: poisoned(getattr(value, f.name), text)
                for f in dataclasses.fields(value)
                if f.init and f.name not in keep
            },
        )
    return value


def poisoned_report(report: Report, text: str = HOSTILE) -> Report:
    """See :func:`poisoned`."""
    tables = tuple(
        dataclasses.replace(table, rows=[poisoned(row, text) for row in table.rows], title=text)
        for table in report.tables
    )
    return dataclasses.replace(
        report,
        kernel=poisoned(report.kernel, text),
        tables=tables,
        head=tuple(text for _ in report.head),
        notes=(text,),
        extra={key: poisoned(value, text) for key, value in report.extra.items()},
    )
