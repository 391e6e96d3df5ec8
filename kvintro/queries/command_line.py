# SPDX-License-Identifier: LGPL-2.1-or-later
"""The options that the kernel was booted with."""

from __future__ import annotations

import shlex
from typing import List, Tuple

from kvintro.arch.x86_64 import PAGE_SIZE
from kvintro.kernel import Kernel
from kvintro.model import Fact

_LONGEST = 1 << 16  # COMMAND_LINE_SIZE is 2048; a boot configuration may add more


def command_line(kernel: Kernel) -> Fact[str]:
    """``saved_command_line``, what /proc/cmdline shows.

    :raises Unavailable: no such symbol, or its memory is not in the source.
    """
    address = kernel.value("saved_command_line").value
    data = b""
    while b"\0" not in data and len(data) < _LONGEST:
        # Never past the page that the string ends in: the next one may not be there.
        at = address + len(data)
        data += kernel.read(at, PAGE_SIZE - at % PAGE_SIZE)
    return Fact(data.split(b"\0")[0].decode("utf-8", "replace"), "saved_command_line")


def options(kernel: Kernel) -> Tuple[str, ...]:
    """The options one by one.

    :raises Unavailable: the source does not tell.
    """
    return split_options(command_line(kernel).value)


def split_options(text: str) -> Tuple[str, ...]:
    """The options of a command line one by one; those in quotes stay whole."""
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return tuple(text.split())


def given(found: Tuple[str, ...], name: str) -> List[str]:
    """Those of the options that set the one called ``name`` (which ends in ``=`` if it takes a value)."""

    # The kernel takes - and _ for the same in names.
    def plain(text: str) -> str:
        return text.split("=", 1)[0].replace("-", "_")

    return [option for option in found if plain(option) == plain(name)]
