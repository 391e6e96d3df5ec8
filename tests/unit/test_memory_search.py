# SPDX-License-Identifier: LGPL-2.1-or-later
"""A search of memory with holes finds the same as Python's own search in the parts, and counts the holes."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, List, Set, Tuple

import drgn
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.errors import NotInDump
from kvintro.model import AddressRange
from kvintro.queries import search as module
from kvintro.queries.search import Pattern, Search, regex_pattern, string_pattern

PAGE = 4096
BASE = 0xFFFF888000000000
PLATFORM = drgn.Platform(drgn.Architecture.X86_64)


def space(pages: List[bytes], missing: Set[int]) -> Any:
    """Memory in which the pages with these numbers cannot be read."""

    def read(address: int, size: int) -> bytes:
        first, last = (address - BASE) // PAGE, (address - BASE + size - 1) // PAGE
        if missing & {*range(first, last + 1)} or last >= len(pages):
            raise NotInDump(address, size, physical=False)
        return b"".join(pages)[address - BASE :][:size]

    form = SimpleNamespace(
        page_size=PAGE, byte_order="little", kernel=AddressRange(1 << 63, (1 << 64) - 1), user=None
    )
    prog = drgn.Program(PLATFORM)
    kernel = SimpleNamespace(form=form, prog=prog, source=SimpleNamespace(live=False))
    return SimpleNamespace(kernel=kernel, pid=None, physical=False, read=read)


def found(pages: List[bytes], missing: Set[int], pattern: Pattern) -> Tuple[List[Tuple[int, bytes]], Search]:
    asked = Search(space(pages, missing), pattern, [(BASE, BASE + PAGE * len(pages) - 1)])
    return [(match.address - BASE, match.data) for match in asked.matches()], asked


def expected(pages: List[bytes], missing: Set[int], regex: bytes) -> List[Tuple[int, bytes]]:
    out, start = [], 0
    for number in range(len(pages) + 1):
        if number == len(pages) or number in missing:
            part = b"".join(pages[start:number])
            out += [(start * PAGE + m.start(), m[0]) for m in re.finditer(regex, part)]
            start = number + 1
    return out


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 4 * PAGE)
        yield


@given(
    st.lists(st.sampled_from([b"\0", b"ab", b"needle", b"edle....neend"]), min_size=1, max_size=14),
    st.sets(st.integers(0, 13), max_size=5),
    st.integers(0, 6),
)
def test_it_finds_what_python_finds(fill: List[bytes], missing: Set[int], shift: int) -> None:
    # Shifted, so that a needle crosses the end of a page.
    data = b"x" * shift + b"".join((text * PAGE)[:PAGE] for text in fill)
    pages = [data[at : at + PAGE] for at in range(0, len(fill) * PAGE, PAGE)]
    gone = {number for number in missing if number < len(pages)}
    places, asked = found(pages, gone, string_pattern("needle", False))
    assert places == expected(pages, gone, b"needle")
    assert asked.searched.missing == PAGE * len(gone)
    assert asked.searched.done == PAGE * (len(pages) - len(gone))
    assert asked.searched.stretches == sum(number - 1 not in gone for number in gone)
    assert asked.searched.first == (BASE + PAGE * min(gone) if gone else None)


def test_a_match_across_chunks_is_whole() -> None:
    pages = [b"." * PAGE for _ in range(9)]
    for end in (4 * PAGE, 8 * PAGE):
        data = b"".join(pages)
        data = data[: end - 5] + b"a" * 11 + data[end + 6 :]
        pages = [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
    places, _ = found(pages, set(), regex_pattern(drgn.Program(PLATFORM), "a+", False))
    assert places == expected(pages, set(), b"a+")
    assert [len(text) for _, text in places] == [11, 11]
