# SPDX-License-Identifier: LGPL-2.1-or-later
"""Colours of regions on a terminal, the same in every command.

They are from the 256-colour palette and of medium brightness, legible on both black and white.
"""

from __future__ import annotations

from typing import Dict

from kvintro.render.text import BOLD

_COLORS: Dict[str, str] = {
    "user": "38;5;67",
    "ldt_remap": "38;5;137",
    "direct_map": "38;5;33",
    "vmalloc": "38;5;30",
    "vmemmap": "38;5;99",
    "kasan_shadow": "38;5;166",
    "cpu_entry_area": "38;5;203",
    "espfix": "38;5;133",
    "efi": "38;5;64",
    "kernel_image": "38;5;136",
    "modules": "38;5;94",
    "fixmap": "38;5;105",
    "vsyscall": "38;5;131",
}


def region_style(key: str) -> str:
    """The SGR code of a region's colour; empty for holes and for regions of other packages."""
    return _COLORS.get(key, "")


def title_style(key: str) -> str:
    """The bold SGR code of a region's colour."""
    return ";".join(filter(None, (BOLD, region_style(key))))
