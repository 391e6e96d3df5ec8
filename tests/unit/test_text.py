# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sizes as mm.rst writes them, and strings that must not control a terminal."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.text import displacement_text, printable, size_text
from tests.hostile import assert_inert


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
def test_a_size_is_right_to_the_digits_that_it_shows(size: int) -> None:
    """The text is the nearest number with its digits: the error is at most half of the last digit."""
    number, unit = size_text(size).split(" ")
    scale = 1 << 10 * ("B", "KB", "MB", "GB", "TB", "PB", "EB").index(unit)
    # Exactly, in integers, because a double cannot represent tenths near 2^64 bytes.
    step = Fraction(scale, 100 if abs(size) < 10 * scale else 10)
    assert abs(Fraction(number) * scale - size) <= step / 2 + Fraction(scale, 1 << 44)
    assert abs(Fraction(number) * scale - size) <= Fraction(abs(size), 200)  # 0.5 %
    assert abs(float(number)) < 1024
    assert len(number.lstrip("-").replace(".", "")) <= 5


@given(st.text())
def test_nothing_but_printable_characters_comes_out(text: str) -> None:
    shown = printable(text)
    assert_inert(shown)
    assert "\n" not in shown
    assert printable(shown) == shown


@given(st.text(st.characters(codec="ascii")))
def test_printable_ascii_stays(text: str) -> None:
    assert not text.isprintable() or printable(text) == text


@pytest.mark.parametrize(
    "text", ["naïve", "Žluťoučký", "Ελλάδα", "Русский", "中文", "日本語カナ", "한국어", "x²≥½", "😀"]
)
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b]0;x\x07\u202eb\n", "a\\x1b]0;x\\x07\\u202eb\\n"),
        ("e\u0301" + "\u0489" * 3, "e\\u0301" + "\\u0489" * 3),
        ("a\ufe0fb\U000e0100", "a\\ufe0fb\\U000e0100"),
        ("\u115f\u1160\u3164\uffa0\u2800", "\\u115f\\u1160\\u3164\\uffa0\\u2800"),
        ("\u05d0\u0627\u0663\U0001e900", "\\u05d0\\u0627\\u0663\\U0001e900"),
        ("\u17b4\u180b\u034f\u00ad\u200d\u2060", "\\u17b4\\u180b\\u034f\\xad\\u200d\\u2060"),
        ("\U0001f44d\U0001f3fb", "\U0001f44d\\U0001f3fb"),
    ],
)
def test_escapes_are_shown_not_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_nothing_ignorable_is_left() -> None:
    """Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt of Unicode 15)."""
    ranges = "ad 34f 61c 115f-1160 17b4-17b5 180b-180f 200b-200f 202a-202e 2060-206f 3164 fe00-fe0f feff ffa0"
    ranges += " fff0-fff8 1bca0-1bca3 1d173-1d17a e0000-e0fff"
    for text in ranges.split():
        first, _, last = text.partition("-")
        for code in range(int(first, 16), int(last or first, 16) + 1):
            assert printable(chr(code)).isascii(), hex(code)
