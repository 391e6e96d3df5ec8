# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shared by the tests of formats: a core's memory to write in another format, and the expected result."""

from __future__ import annotations

import json
from typing import Any, List, Tuple

import pytest

from kvintro.kernels import Kernel
from kvintro.render import render
from kvintro.reports.layout import layout
from kvintro.source.scan import pieces
from tests.conftest import Core
from tests.memory_files import dumped_ranges

#: (first address, content)
Range = Tuple[int, bytes]


def regions(kernel: Kernel) -> Any:
    """The rows of the layout. The facts about the file may differ, but those about the kernel must not."""
    return json.loads(render(layout(kernel), "json"))["regions"]


@pytest.fixture(scope="session")
def memory(core: Core, kernel: Kernel) -> List[Range]:
    """All physical memory in the core that can be RAM."""

    def read(address: int, size: int) -> bytes:
        data: bytes = kernel.prog.read(address, size, True)
        return data

    found: List[Tuple[int, List[bytes]]] = []
    following = -1
    for start, end in dumped_ranges(core.path):
        for address, data in pieces(read, start, end):
            if address != following:
                found.append((address, []))
            found[-1][1].append(data)
            following = address + len(data)
    return [(address, b"".join(parts)) for address, parts in found]


@pytest.fixture(scope="session")
def expected(kernel: Kernel) -> Any:
    return regions(kernel)
