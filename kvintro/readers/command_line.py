# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options of the kernel's command line."""

from __future__ import annotations

import shlex
from typing import List, Optional, Tuple

from kvintro.arch.form import SMALLEST_PAGE
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Fact
from kvintro.readers.structures import text_at

_LONGEST = 1 << 16  # COMMAND_LINE_SIZE is 2048; a boot configuration may add more


def command_line(kernel: Kernel) -> Fact[str]:
    """``saved_command_line``, which /proc/cmdline shows.

    :raises Unavailable: there is no such symbol, or its memory is not in the source.
    """
    address = kernel.value("saved_command_line").value
    data, page = b"", SMALLEST_PAGE
    while b"\0" not in data and len(data) < _LONGEST:
        # Read only up to the page that contains the end of the string: the next one may be missing.
        at = address + len(data)
        data += kernel.read(at, page - at % page)
    return Fact(data.split(b"\0")[0].decode("utf-8", "replace"), "saved_command_line")


def options(kernel: Kernel) -> Tuple[str, ...]:
    """Options of the kernel's command line.

    :raises Unavailable: the source does not contain it.
    """
    return split_options(command_line(kernel).value)


def split_options(text: str) -> Tuple[str, ...]:
    """Split a command line into options; quotes keep an option together."""
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return tuple(text.split())


def command_line_words(kernel: Kernel) -> Optional[List[str]]:
    """Words of the kernel's command line; None if it cannot be read."""
    try:
        return text_at(kernel, kernel.value("saved_command_line").value).split()
    except Unavailable:
        return None


def given(found: Tuple[str, ...], name: str) -> List[str]:
    """The options that set the one called ``name`` (which ends in ``=`` if it takes a value)."""

    # The kernel treats - and _ as equal in names.
    def plain(text: str) -> str:
        return text.split("=", 1)[0].replace("-", "_")

    return [option for option in found if plain(option) == plain(name)]
