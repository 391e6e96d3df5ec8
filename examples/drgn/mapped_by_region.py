#!/usr/bin/env drgn
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Print each region of the kernel's address space with its start and how much of it is mapped.

A script for drgn, in the style of those in drgn's contrib directory. It needs kvintro, and no debuginfo:

    drgn -c vmcore mapped_by_region.py
"""

from drgn import Program

from kvintro import kernel

prog: Program

for row in kernel(prog).layout(holes=False):
    if row.start is not None and row.mapped:
        print(f"{row.start:#018x} {row.mapped:>16} {row.key}")
