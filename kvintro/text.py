# SPDX-License-Identifier: LGPL-2.1-or-later
"""How sizes and strings of unknown origin are written wherever a sentence holds one."""

from __future__ import annotations

from functools import lru_cache

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


# Characters that show nothing or change the one before them, and are neither marks nor unprintable: Hangul
# fillers, vowels and finals (which have no width of their own), blanks, U+FFFC, emoji modifiers.
_INVISIBLE = (
    (0x115F, 0x11FF),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xD7B0, 0xD7FF),
    (0xFFA0, 0xFFA0),
    (0xFFFC, 0xFFFC),
    (0x13441, 0x13442),
    (0x1D159, 0x1D159),
    (0x1F3FB, 0x1F3FF),
)


@lru_cache(maxsize=1 << 12)
def _escaped(char: str) -> str:
    import unicodedata

    code = ord(char)
    if (
        char.isprintable()
        and unicodedata.category(char)[0] != "M"
        and unicodedata.bidirectional(char) not in ("R", "AL", "AN")
        and not any(first <= code <= last for first, last in _INVISIBLE)
    ):
        return char
    return ascii(char)[1:-1]


def printable(text: str) -> str:
    """Text of unknown origin as characters that each take a place of their own, from left to right.

    Everything else is escaped, so that no terminal obeys it and no reader is misled: control and format
    characters, combining marks, variation selectors, fillers, letters that are written from right to left.
    Letters that have their accent in them and those of East Asia stay. So does what is escaped already.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escaped, text))
