# SPDX-License-Identifier: LGPL-2.1-or-later
"""Symbols and types for a kernel without debuginfo. After ``install(prog)``, drgn's own helpers work.

>>> prog = drgn.Program()
>>> prog.set_core_dump("vmcore")
>>> kvintro.types.install(prog).types
'BTF'
>>> prog["init_task"].comm
(char [16])"swapper/0"
"""

from __future__ import annotations

from kvintro.source.installed import Installed, Missing, install

__all__ = ("Installed", "Missing", "install")
