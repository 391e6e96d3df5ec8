# SPDX-License-Identifier: LGPL-2.1-or-later
"""Formatting of sizes, and of strings of unknown origin, for use in sentences."""

from __future__ import annotations

from functools import lru_cache
from typing import Iterable, List

_LONGEST_WORD = 64  # longer ones are not names
_UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB")


def size_text(size: int) -> str:
    """Format bytes as ``64 TB``, ``59.2 TB``, ``4 KB``: powers of 1024, to 0.1 (below 10 to 0.01)."""
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
    """Format a signed number of bytes as ``+6.47 TB``, ``-4 GB``, ``0``."""
    if value == 0:
        return "0"
    return ("+" if value > 0 else "") + size_text(value)


def closest(word: str, candidates: Iterable[str]) -> List[str]:
    """Up to three candidates that the user may have meant, the most likely first."""
    from difflib import get_close_matches

    by_lower = {candidate.lower(): candidate for candidate in candidates}
    near = get_close_matches(word.lower()[:_LONGEST_WORD], by_lower, n=3, cutoff=0.7)
    return [by_lower[name] for name in near]


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return the beginning of a remedy, ``did you mean vmalloc? ``, or "" if no candidate is similar."""
    near = closest(word, candidates)
    return f"did you mean {' or '.join(map(printable, near))}? " if near else ""


# Characters that are invisible or change the one before them, but are neither marks nor unprintable: Hangul
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
    """Keep characters that occupy a place of their own, left to right, and escape all others.

    Escaped are control and format characters, combining marks, variation selectors, fillers and letters of
    right-to-left scripts: no terminal obeys them and no reader is misled. Precomposed letters and those of
    East Asia stay. Text that is already escaped stays too.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escaped, text))
