# SPDX-License-Identifier: LGPL-2.1-or-later
"""Access rights to memory, as bits that do not depend on the architecture.

All bits are positive: a set bit allows something. The rights of an address are those of the entry that maps
it, ANDed with those of each table entry above. This is right for all architectures: on x86-64 every level can
take rights away, on aarch64 table entries can (APTable, PXNTable, UXNTable), on riscv none does.
"""

from __future__ import annotations

from typing import Tuple

#: Kernel mode or user mode may read it.
READ = 1 << 0
#: A mode that may read it may also write it.
WRITE = 1 << 1
#: User mode may access it.
USER = 1 << 2
#: Kernel mode may execute it.
EXEC = 1 << 3
#: User mode may execute it.
USER_EXEC = 1 << 4

ALL_RIGHTS = READ | WRITE | USER | EXEC | USER_EXEC


def words(rights: int) -> Tuple[str, ...]:
    """Rights as words: ``user`` if user mode has access, ``RW`` or ``ro``, ``x`` or ``NX`` in kernel mode."""
    found = ("RW" if rights & WRITE else "ro", "x" if rights & EXEC else "NX")
    return ("user", *found) if rights & USER else found
