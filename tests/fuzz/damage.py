# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ways of damaging bytes, words and text."""

from __future__ import annotations

import random
from typing import List, MutableSequence, Sequence

_WORDS = (0, 1, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 47, 1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)

#: Strings that try to control a terminal, a page or a table.
HOSTILE = (
    b"\x1b[2J\x1b[31mred\x1b[0m",
    b"\x1b]0;title\x07",
    b"\x9b31m\x85\x90",
    b"<script>alert(1)</script>",
    b'"><img src=x onerror=alert(1)>',
    b"a\nb\rc\td",
    b"%s%n%x{0.__class__}",
    b"\xff\xfe\xf0\x9f",
    "\u202egnp.exe\u2066".encode(),
    b"=cmd|'/c calc'!A1",
    b"\x1b]52;c;ZXZpbA==\x07",
    "a\u0301\u0489\ufe0f\u3164\u05d0".encode(),
    b"A" * 300,
)


def word(chosen: random.Random, old: int, others: Sequence[int] = ()) -> int:
    """A 64-bit word to replace an old one; sometimes one of ``others``."""
    way = chosen.randrange(8 if others else 6)
    if way == 0:
        return old ^ 1 << chosen.randrange(64)
    if way == 1:
        return chosen.choice(_WORDS)
    if way == 2:
        return chosen.randrange(1 << 64)
    if way == 3:
        return old + chosen.choice((-4096, -64, -8, -1, 1, 8, 64, 4096)) & (1 << 64) - 1
    if way == 4:
        return old & 0xFFFFFFFF
    if way == 5:
        return (old << chosen.randrange(1, 16)) & (1 << 64) - 1
    return chosen.choice(others)


def damaged(chosen: random.Random, data: bytes, most: int = 8) -> bytes:
    """Bytes with a few of them changed, and sometimes some removed, doubled or moved."""
    out = bytearray(data)
    for _ in range(chosen.randint(1, most)):
        if not out:
            break
        at = chosen.randrange(len(out))
        way = chosen.randrange(10)
        if way < 4:
            out[at] = chosen.choice((out[at] ^ 1 << chosen.randrange(8), chosen.randrange(256), 0, 0xFF))
        elif way < 8:
            size = chosen.choice((2, 4, 8))
            value = word(chosen, int.from_bytes(out[at : at + size], "little"))
            out[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")[: len(out) - at]
        elif way == 8:
            del out[at : at + chosen.randint(1, 64)]
        else:
            out[at:at] = out[at : at + chosen.randint(1, 64)]
    return bytes(out)


def damaged_text(chosen: random.Random, lines: Sequence[str]) -> str:
    """Lines of KEY=VALUE with a few of them changed, missing, doubled or out of place."""
    out: MutableSequence[str] = list(lines)
    for _ in range(chosen.randint(1, 4)):
        if not out:
            break
        at = chosen.randrange(len(out))
        key, _, value = out[at].partition("=")
        way = chosen.randrange(8)
        if way == 0:
            del out[at]
        elif way == 1:
            out.insert(at, out[chosen.randrange(len(out))])
        elif way == 2:
            out[at] = f"{key}={value}{chosen.randrange(1 << 70):x}"
        elif way == 3:
            out[at] = f"{key}=-{value}"
        elif way == 4:
            out[at] = f"{key}={chosen.choice(HOSTILE).decode('latin-1')}"
        elif way == 5:
            out[at] = f"{key}={chosen.choice(_WORDS):x}"
        elif way == 6:
            out[at] = f"{key}={chosen.choice(_WORDS)}"
        else:
            out[at] = out[at][: chosen.randrange(len(out[at]) + 1)]
    return "".join(f"{line}\n" for line in out)


def some(chosen: random.Random, values: Sequence[int], most: int) -> List[int]:
    """A few values of a sequence."""
    return chosen.sample(list(values), min(len(values), chosen.randint(1, most)))
