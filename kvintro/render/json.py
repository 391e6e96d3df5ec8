# SPDX-License-Identifier: LGPL-2.1-or-later
"""JSON: one document per report; addresses as ``"0x..."`` of 16 digits, all other numbers as numbers."""

from __future__ import annotations

import dataclasses
import json
from typing import Dict, Mapping, Optional

from kvintro.model import Address, Report, Section


def plain(value: object) -> object:
    """Convert a value of a report to types that the json module writes."""
    if isinstance(value, Address):
        return f"0x{value:016x}"
    if isinstance(value, (bool, str, float)) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
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
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"no JSON for {type(value).__name__}")


def document(report: Report) -> Dict[str, object]:
    """Convert the report to one document."""
    return {
        "schema": f"kvintro.{report.command}/1",
        "kernel": plain(report.kernel),
        **{key: plain(value) for key, value in report.extra.items()},
        **{table.key: plain(table.rows) for table in report.tables},
        "notes": plain(report.notes),
        "partial": report.partial,
    }


def ascii_json(value: object, indent: Optional[int] = None) -> str:
    """Format a value of :func:`plain` as printable ASCII, which cannot control a terminal."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def render_json(report: Report) -> str:
    """Format the document as text."""
    return ascii_json(document(report), indent=2) + "\n"
