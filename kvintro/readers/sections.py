# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory sections (``struct mem_section``), and where each records which of its parts are memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional, Tuple

from kvintro.errors import Unavailable
from kvintro.model import ALL
from kvintro.readers.structures import offset_of, pointer_at, size_of

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

SUBSECTION_SHIFT = 21  # include/linux/mmzone.h


class SectionForm(NamedTuple):
    """Layout of ``struct mem_section`` and ``struct mem_section_usage``.

    :ivar size: size of a ``struct mem_section`` in bytes.
    :ivar map: offset of ``section_mem_map`` in it.
    :ivar usage: offset of ``usage`` in it.
    :ivar bitmap: offset of ``subsection_map`` in what ``usage`` points to; None if unknown.
    """

    size: int
    map: int
    usage: int
    bitmap: Optional[int]

    @property
    def lack(self) -> str:
        """What is unknown, "" if nothing is."""
        if self.bitmap is not None:
            return ""
        return "without types it is unknown which parts of a section are memory: sections count as a whole"


def section_form(kernel: Kernel) -> SectionForm:
    """Return the layout on this kernel, from its types, or else from VMCOREINFO and the sections' contents.

    :raises Unavailable: neither is sufficient.
    """
    name = "struct mem_section"
    size, map_at = size_of(kernel, name), offset_of(kernel, name, "section_mem_map")
    if kernel.source.types == "none":
        # Since it exists (5.3) it directly follows the map.
        form = SectionForm(size, map_at, map_at + 8, None)
        return next(
            (found for at in (0, 16) for found in [_with(form, at)] if _agrees(kernel, found)),
            form,
        )
    return SectionForm(
        size,
        map_at,
        offset_of(kernel, name, "usage"),
        offset_of(kernel, "struct mem_section_usage", "subsection_map"),
    )


def _with(form: SectionForm, at: int) -> SectionForm:
    return SectionForm(form.size, form.map, form.usage, at)


def _agrees(kernel: Kernel, form: SectionForm) -> bool:
    """Whether the bitmaps begin and end where VMCOREINFO's members of the nodes say that memory does.

    Nothing precedes the bitmap, or a ``struct rcu_head`` ("mm/sparsemem: fix race in accessing
    memory_section->usage", 5ec8e8ea8b77, 6.8), which is zero while the section is present.
    """
    assert form.bitmap is not None
    try:
        checked = 0
        for first, end in kernel.node_spans():
            if first == end:
                continue
            for frame, low in ((first, True), (end - 1, False)):
                section, bit = _place(kernel, frame)
                usage = _usage(kernel, form, section)
                head, bitmap = kernel.read(usage, form.bitmap), pointer_at(kernel, usage + form.bitmap)
                edge = bitmap & -bitmap if low else bitmap
                if any(head) or edge.bit_length() - 1 != bit:
                    return False
                checked += 1
        return bool(checked)
    except Unavailable:
        return False


def _place(kernel: Kernel, frame: int) -> Tuple[int, int]:
    """(section number, subsection number within it) of a page frame."""
    shift = kernel.section_size_bits.value - kernel.page_shift
    return frame >> shift, (frame & (1 << shift) - 1) >> SUBSECTION_SHIFT - kernel.page_shift


def _usage(kernel: Kernel, form: SectionForm, section: int) -> int:
    """Value of a section's ``usage``.

    :raises Unavailable: there is no such section, or it is not in the source.
    """
    per_root = kernel.form.page_size // form.size
    root = pointer_at(kernel, section_table(kernel) + 8 * (section // per_root))
    return pointer_at(kernel, root + section % per_root * form.size + form.usage & ALL)


def section_table(kernel: Kernel) -> int:
    """Address of the array of pointers to pages of sections (SPARSEMEM_EXTREME).

    :raises Unavailable: the source does not contain it.
    """
    return kernel.first_fact(
        lambda: kernel.number("SYMBOL(mem_section)"), lambda: kernel.value("mem_section")
    ).value
