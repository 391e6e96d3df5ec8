# SPDX-License-Identifier: LGPL-2.1-or-later
"""How sizes and strings of unknown origin are written wherever a sentence holds one."""

from __future__ import annotations

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB")


def size_text(size: int) -> str:
    """A number of bytes as ``64 TB``, ``59.2 TB``, ``4 KB``: powers of 1024, to 0.1 (below 10 to 0.01)."""
    unit = 0
    while unit < len(_UNITS) - 1 and abs(size) >= 1 << 10 * (unit + 1):
        unit += 1
    scale = 1 << 10 * unit
    whole, rest = divmod(abs(size), scale)
    sign = "-" if size < 0 else ""
    if rest == 0:
        return f"{sign}{whole} {_UNITS[unit]}"
    value = abs(size) / scale
    text = f"{value:.{2 if value < 10 else 1}f}".rstrip("0").rstrip(".")
    if text == "1024" and unit < len(_UNITS) - 1:
        text, unit = "1", unit + 1
    return f"{sign}{text} {_UNITS[unit]}"


def displacement_text(value: int) -> str:
    """A signed number of bytes as ``+6.47 TB``, ``-4 GB``, ``0``."""
    if value == 0:
        return "0"
    return ("+" if value > 0 else "") + size_text(value)


def printable(text: str) -> str:
    """Text of unknown origin with all but printable characters escaped, so that no terminal obeys it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
