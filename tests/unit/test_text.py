# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sizes as mm.rst writes them, and strings that no terminal may obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.text import displacement_text, printable, size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (4096, "4 KB"),
        (512 << 30, "512 GB"),
        (128 << 40, "128 TB"),
        # The rows of mm.rst for 4 levels: -119.5 TB, 16M TB, 444 GB.
        (-(239 << 39), "-119.5 TB"),
        (1 << 64, "16 EB"),
        (444 << 30, "444 GB"),
        ((1 << 40) - 1, "1 TB"),
        (1536, "1.5 KB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_displacements_have_a_sign() -> None:
    assert displacement_text(0) == "0"
    assert displacement_text(528 << 20) == "+528 MB"
    assert displacement_text(-4096) == "-4 KB"


@given(st.integers(-(1 << 64), 1 << 64))
def test_a_size_is_right_to_one_in_twenty(size: int) -> None:
    number, unit = size_text(size).split(" ")
    scale = 1 << 10 * ("B", "KB", "MB", "GB", "TB", "PB", "EB").index(unit)
    assert abs(float(number) * scale - size) <= abs(size) * 0.05
    assert abs(float(number)) < 1024


@given(st.text())
def test_nothing_but_printable_characters_comes_out(text: str) -> None:
    assert printable(text).isprintable()


def test_escapes_are_shown_not_obeyed() -> None:
    assert printable("a\x1b]0;x\x07\u202eb\n") == "a\\x1b]0;x\\x07\\u202eb\\n"
    assert printable("naïve") == "naïve"
