# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvintro: the Linux kernel's virtual address space as it really is."""

__version__ = "0.1.0"
