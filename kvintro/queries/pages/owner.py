# SPDX-License-Identifier: LGPL-2.1-or-later
"""Allocation records of pages, if the kernel keeps them (CONFIG_PAGE_OWNER and ``page_owner=on``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional, Tuple

import drgn

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Address
from kvintro.readers.names import Names
from kvintro.readers.structures import TROUBLE, number, offset_of, pointer_at, size_of, struct_at, text_of

_MAX_FRAMES = 256  # CONFIG_STACKDEPOT_MAX_FRAMES
_STACK_ALIGN = 4  # lib/stackdepot.c:DEPOT_STACK_ALIGN
_INVALID = 1  # mm/page_ext.c:PAGE_EXT_INVALID


@dataclass(frozen=True)
class Frame:
    """A return address on a stack."""

    address: Address
    symbol: Optional[str]


@dataclass(frozen=True)
class PageOwner:
    """``struct page_owner``.

    :ivar allocated: whether the page is still allocated; if not, the record is of its last allocation.
    :ivar order: order of the allocation.
    :ivar gfp: ``gfp_mask`` of the allocation.
    :ivar nanoseconds: time of the allocation by the kernel's clock.
    :ivar stack: stack of the allocation, innermost frame first.
    :ivar freed: stack of the last time it was freed.
    """

    allocated: bool
    order: int
    gfp: int
    pid: int
    tgid: Optional[int]
    comm: Optional[str]
    nanoseconds: int
    stack: Tuple[Frame, ...]
    freed: Tuple[Frame, ...]


def page_owner(kernel: Kernel, names: Names, pfn: int) -> Optional[PageOwner]:
    """Read the record of a page frame; None if this kernel keeps none.

    :param names: formats the code addresses on the stacks.
    :raises Unavailable: the record cannot be read.
    """
    if not kernel.has_symbol("__set_page_owner", code=True):
        return None
    operations = kernel.symbol("page_owner_ops")
    try:
        record, flags = _record(kernel, operations, pfn)
        if not record:
            return None
        prog = kernel.prog
        if not flags >> int(prog.constant("PAGE_EXT_OWNER")) & 1:
            return None
        owner = struct_at(kernel, "struct page_owner", record)
        comm = getattr(owner, "comm", None)
        return PageOwner(
            allocated=bool(flags >> int(prog.constant("PAGE_EXT_OWNER_ALLOCATED")) & 1),
            order=number(owner, "order"),
            gfp=number(owner, "gfp_mask"),
            pid=number(owner, "pid"),
            tgid=number(owner, "tgid") if hasattr(owner, "tgid") else None,
            comm=None if comm is None else text_of(comm),
            nanoseconds=number(owner, "ts_nsec"),
            stack=_stack(kernel, names, number(owner, "handle")),
            freed=_stack(kernel, names, number(owner, "free_handle")),
        )
    except TROUBLE as error:
        raise Unavailable(f"the page's owner cannot be read: {error}") from error


def _record(kernel: Kernel, operations: int, pfn: int) -> Tuple[int, int]:
    """(address of the ``struct page_owner``, flags of the page_ext); (0, 0) for none.

    mm/page_ext.c:lookup_page_ext with SPARSEMEM: a section's table is indexed by page frame number.
    """
    section_size = size_of(kernel, "struct mem_section")
    per_root = kernel.form.page_size // section_size
    shift = kernel.section_size_bits.value - kernel.page_shift
    section = pfn >> shift
    table = kernel.first_fact(
        lambda: kernel.number("SYMBOL(mem_section)"), lambda: kernel.value("mem_section")
    ).value
    root = pointer_at(kernel, table + 8 * (section // per_root))
    if not root:
        return 0, 0
    at = root + section % per_root * section_size
    base = pointer_at(kernel, at + offset_of(kernel, "struct mem_section", "page_ext"))
    if not base or base & _INVALID:
        return 0, 0
    each = kernel.value("page_ext_size").value
    entry = base + each * pfn & ALL
    offset = pointer_at(kernel, operations + offset_of(kernel, "struct page_ext_operations", "offset"))
    flags = pointer_at(kernel, entry + offset_of(kernel, "struct page_ext", "flags"))
    return entry + offset & ALL, flags


def _stack(kernel: Kernel, names: Names, handle: int) -> Tuple[Frame, ...]:
    """lib/stackdepot.c:stack_depot_fetch."""
    if not handle:
        return ()
    prog = kernel.prog
    parts = drgn.Object.from_bytes_(prog, prog.type("union handle_parts"), handle.to_bytes(4, "little"))
    if kernel.find_symbol("stack_pools") is not None:
        name = "stack_pools"
        # 6.9 numbered the pools from 1, so that no handle is 0.
        index = (
            number(parts, "pool_index_plus_1") - 1
            if hasattr(parts, "pool_index_plus_1")
            else number(parts, "pool_index")
        )
    else:
        name, index = "stack_slabs", number(parts, "slabindex")
    pools = prog.symbol(name)
    # An array; since 6.18 a pointer to one.
    table = pointer_at(kernel, pools.address) if pools.size == 8 else int(pools.address)
    record_at = pointer_at(kernel, table + 8 * index) + (number(parts, "offset") << _STACK_ALIGN) & ALL
    record = struct_at(kernel, "struct stack_record", record_at)
    count = min(number(record, "size"), _MAX_FRAMES)
    data = kernel.read(record_at + offset_of(kernel, "struct stack_record", "entries"), 8 * count)
    frames = []
    for i in range(count):
        address = int.from_bytes(data[8 * i : 8 * i + 8], "little")
        frames.append(Frame(Address(address), _symbol(names, address)))
    return tuple(frames)


def _symbol(names: Names, address: int) -> Optional[str]:
    """Name of a function without the size that :meth:`Names.code` adds."""
    text = names.code(address)
    return None if text.startswith("0x") else re.sub("/0x[0-9a-f]+", "", text, count=1)
