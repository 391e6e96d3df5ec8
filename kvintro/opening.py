# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opens a kernel: its source, and the regions that its architecture can have."""

from __future__ import annotations

from kvintro.kernels import Kernel
from kvintro.regions import regions_of
from kvintro.source import Request, Source, open_source


def open_kernel(request: Request) -> Kernel:
    """Open a source and wrap it; see :func:`kvintro.source.open_source` for the exceptions."""
    return kernel_of(open_source(request))


def kernel_of(source: Source) -> Kernel:
    """Return the kernel of an open source."""
    return Kernel(source, regions_of)
