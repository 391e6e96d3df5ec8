# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shared code does not assume x86-64 in more places than today."""

from __future__ import annotations

import ast
from typing import List

import pytest

from tools.x86_uses import ALLOWED, _uses, uses

#: Remaining uses, see ``tools/x86_uses.py --counts``. Lower this number as they are removed; the aim is 0.
MOST = 0


def test_no_more_uses_than_before() -> None:
    found = uses()
    assert len(found) <= MOST, "\n".join(f"{use.file}:{use.line}: {use.what}" for use in found)


def test_what_is_allowed_is_there_and_has_a_reason() -> None:
    every = {(use.file, use.what) for use in uses(allowed=())}
    files = {file for file, _ in every}
    for (file, what), reason in ALLOWED.items():
        assert (file in files if what == "*" else (file, what) in every) and reason, (file, what)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from kvintro.arch.x86_64 import ALL", ["import of kvintro.arch.x86_64"]),
        ("from kvintro.arch import x86_64", ["import of kvintro.arch.x86_64"]),
        ("def f():\n    import kvintro.arch.x86_64.form", ["import of kvintro.arch.x86_64"]),
        ("pfn = address >> 12", [">> 12"]),
        ("start = numpy.uint64(7) << numpy.uint64(12)", ["<< 12"]),
        ("size = 1 << 12 + 9 * (level - 1)", ["<< 12"]),
        ("page = address & -4096", ["number 4096"]),
        ("inside = address & 0xFFF", ["number 4095"]),
        ("end = kernel.geometry.guard_hole.end + 1", ["guard_hole", "geometry"]),
        ("if region.key == 'vmalloc': pass", ['compared with "vmalloc"']),
        ("if key in ('modules', 'other'): pass", ['compared with "modules"']),
        ("entry = struct.Struct('<Q')", ['"<Q"']),
        ("numpy.frombuffer(data, '<u8')", ['"<u8"']),
        ("if value & PRESENT: pass", ["PRESENT"]),
        ("if rights & USER: pass", ["USER"]),
        ("from kvintro.arch.rights import USER\nif rights & USER: pass", []),
        ('"""START_KERNEL_MAP, 4096"""  # PAGE_SHIFT', []),
        ("print('4096 bytes at START_KERNEL_MAP')", []),
    ],
)
def test_what_is_found(code: str, expected: List[str]) -> None:
    assert sorted(what for _, what, _ in _uses(ast.parse(code))) == sorted(expected)
