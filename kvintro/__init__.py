# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvintro: shows the actual layout of the Linux kernel's virtual address space.

>>> import kvintro
>>> k = kvintro.open("vmcore")       # a dump; without a path, the running kernel
>>> k.layout()

At drgn's prompt, ``from kvintro import kernel`` and ``k = kernel(prog)`` do the same for the prompt's
program.
"""

from __future__ import annotations

from kvintro.version import __version__

TYPE_CHECKING = False  # importing typing's own costs more than importing this module
if TYPE_CHECKING:
    from kvintro.prompt import kernel, open

__all__ = ("__version__", "kernel", "open")


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # Keep importing kvintro cheap: load the parts that need drgn on first use.
        if name in ("kernel", "open"):
            from kvintro import prompt

            return getattr(prompt, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> "list[str]":
    return sorted({*globals(), *__all__})
