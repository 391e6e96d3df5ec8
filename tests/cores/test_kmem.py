# SPDX-License-Identifier: LGPL-2.1-or-later
"""crash's kmem: each form answers as the command that docs/questions.md names."""

from __future__ import annotations

from typing import Any, List

import pytest

from kvintro.commands import run_command
from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.model import Report
from kvintro.parser import parse


def _answer(kernel: Kernel, words: List[str]) -> Any:
    result = run_command(kernel, parse(["-c", "x", *words]))
    assert isinstance(result, Report)
    return result.command, result.tables, result.extra, result.partial


@pytest.mark.parametrize(
    ("kmem", "same"),
    [
        (["-v"], ["show", "vmalloc"]),
        (["-p", "1000"], ["page", "1000"]),
        (["-p", "init_task", "2000"], ["page", "init_task", "2000"]),
        (["init_task", "1000"], ["identify", "init_task", "1000"]),
    ],
)
def test_each_form_is_another_command(kernel: Kernel, kmem: List[str], same: List[str]) -> None:
    assert _answer(kernel, ["kmem", *kmem]) == _answer(kernel, same)


def test_without_an_address_it_counts_pages(kernel: Kernel) -> None:
    command, tables, extra, partial = _answer(kernel, ["kmem", "-p"])
    _, expected, counted, also = _answer(kernel, ["pages"])
    assert (command, tables, partial) == ("pages", expected, also)
    assert extra["by_type"] == counted["by_type"]


@pytest.mark.parametrize(
    ("words", "remedy"), [([], "kvintro kmem --help"), (["-v", "1000"], "kvintro identify ADDR")]
)
def test_other_forms_are_refused(kernel: Kernel, words: List[str], remedy: str) -> None:
    with pytest.raises(UsageError) as refused:
        _answer(kernel, ["kmem", *words])
    assert remedy in refused.value.remedy
