# SPDX-License-Identifier: LGPL-2.1-or-later
"""How single values are written."""

from __future__ import annotations

from typing import Any, Mapping

from kvintro.model import Address, Displacement, Size
from kvintro.text import displacement_text, printable, size_text


def value_text(value: Any) -> str:
    """Any value of a row, for a person."""
    if value is None:
        return ""
    if isinstance(value, Address):
        return f"{value:016x}"
    if isinstance(value, Displacement):
        return displacement_text(value)
    if isinstance(value, Size):
        return size_text(value)
    if isinstance(value, Mapping):
        return " ".join(f"{printable(str(k))}:{value_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(value_text(v) for v in value)
    return printable(str(value))
