# SPDX-License-Identifier: LGPL-2.1-or-later
"""Formatting of single values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Tuple, Type

from kvintro.model import Address, Displacement, Row, Size
from kvintro.text import displacement_text, printable, size_text


def field_of(row: Row, key: str) -> object:
    """The field of a row for a column key; None if rows of this kind do not have it."""
    value: object = getattr(row, key, None)
    return value


@cache
def names_of(row: Type[Row]) -> Tuple[str, ...]:
    """Names of the fields of a type of rows."""
    return tuple(field.name for field in dataclasses.fields(row))


def value_text(value: object) -> str:
    """Format any value of a row for display."""
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
