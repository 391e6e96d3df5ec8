# SPDX-License-Identifier: LGPL-2.1-or-later
"""Meaning of a page's state: the type that it counts as, and its flags in /proc/kpageflags."""

from __future__ import annotations

from typing import Dict, List, Tuple

from kvintro.queries.pages.format import PageFormat
from kvintro.queries.pages.runs import (
    ANON,
    ANON_KSM,
    DANGLING,
    DEVICE,
    FLAGS,
    HAS_MAPPING,
    HUGETLB,
    IN_FREE_BLOCK,
    LARGE_MAPPED,
    MAPPED,
    NOT_INITIALISED,
    OFFLINE,
    ORDER_MASK,
    ORDER_SHIFT,
    RMAPPABLE,
    TAIL,
    TYPE_MASK,
    TYPE_SHIFT,
    UNREFERENCED,
    ZERO,
)

#: Every type with its meaning, in the order of lists that are not sorted by count.
TYPES: Dict[str, str] = {
    "free": "in the buddy allocator",
    "free_cpu": "free, without references: on a CPU's list of free pages, or on its way there",
    "anon": "anonymous memory of processes",
    "thp": "anonymous memory in large folios (transparent huge pages)",
    "ksm": "anonymous memory merged by KSM",
    "file": "page cache of files",
    "shmem": "tmpfs, shared memory, memfd",
    "swapcache": "swap cache: of shared memory, or read ahead for no process yet",
    "hugetlb": "hugetlb pages in use",
    "hugetlb_free": "hugetlb pages in the pool",
    "zero": "the zero page, the huge zero page",
    "slab": "slab caches",
    "large_kmalloc": "kmalloc memory that is too large for slab caches",
    "pgtable": "page tables",
    "zsmalloc": "compressed memory (zram, zswap)",
    "unnamed_type": "page tables, or of another type that has no name in VMCOREINFO (no types here)",
    "movable": "pages that a driver can migrate (balloon, zsmalloc)",
    "kernel": "other memory that the kernel allocated: vmalloc, stacks, drivers",
    "reserved": "reserved at boot: firmware, the kernel image, struct pages, no memory at all",
    "kernel_or_reserved": "memory that the kernel allocated, or reserved at boot (no types here)",
    "offline": "not in use: never put online, or taken away by a balloon or virtio-mem",
    "guard": "guard pages of debug_pagealloc",
    "unaccepted": "not accepted from the hypervisor yet",
    "device": "memory of a device (ZONE_DEVICE)",
    "hwpoison": "broken memory",
    "uninitialised": "struct page never initialised",
    "broken": "tail of a compound page without a head",
    "not_in_dump": "the struct page is not in this dump",
}

#: Types that a census without types cannot separate, by the type that it counts them as.
TOGETHER: Dict[str, Tuple[str, ...]] = {
    "unnamed_type": ("pgtable", "zsmalloc", "guard", "unaccepted", "large_kmalloc"),
    "kernel_or_reserved": ("kernel", "reserved"),
}

# include/uapi/linux/kernel-page-flags.h and include/linux/kernel-page-flags.h; user space relies on these.
KPF_LRU, KPF_SLAB, KPF_BUDDY, KPF_MMAP, KPF_ANON, KPF_SWAPCACHE, KPF_SWAPBACKED = 5, 7, 10, 11, 12, 13, 14
KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL, KPF_HUGE, KPF_HWPOISON, KPF_NOPAGE = 15, 16, 17, 19, 20
KPF_RESERVED, KPF_PRIVATE = 32, 35
KPF_KSM, KPF_THP, KPF_OFFLINE, KPF_ZERO_PAGE, KPF_IDLE, KPF_PGTABLE = 21, 22, 23, 24, 25, 26
# Bits that are copied from a flag: fs/proc/page.c:stable_page_flags. Both names if the flag was renamed.
_COPIED: Tuple[Tuple[int, Tuple[str, ...]], ...] = (
    (0, ("locked",)),
    (1, ("error",)),
    (2, ("referenced",)),
    (3, ("uptodate",)),
    (4, ("dirty",)),
    (5, ("lru",)),
    (6, ("active",)),
    (8, ("writeback",)),
    (9, ("reclaim",)),
    (14, ("swapbacked",)),
    (18, ("unevictable",)),
    (25, ("idle",)),
    (32, ("reserved",)),
    (33, ("mlocked",)),
    (34, ("owner_2", "mappedtodisk")),
    (35, ("private",)),
    (36, ("private_2",)),
    (37, ("owner_priv_1",)),
    (38, ("arch_1",)),
    (39, ("uncached",)),
    (41, ("arch_2",)),
    (42, ("arch_3",)),
)

# tools/mm/page-types.c:page_flag_names, by bit.
KPF_NAMES: Dict[int, str] = dict(
    enumerate(
        [
            "L:locked",
            "E:error",
            "R:referenced",
            "U:uptodate",
            "D:dirty",
            "l:lru",
            "A:active",
            "S:slab",
            "W:writeback",
            "I:reclaim",
            "B:buddy",
            "M:mmap",
            "a:anonymous",
            "s:swapcache",
            "b:swapbacked",
            "H:compound_head",
            "T:compound_tail",
            "G:huge",
            "u:unevictable",
            "X:hwpoison",
            "n:nopage",
            "x:ksm",
            "t:thp",
            "o:offline",
            "z:zero_page",
            "i:idle_page",
            "g:pgtable",
        ]
    )
)
KPF_NAMES.update(
    enumerate(
        [
            "r:reserved",
            "m:mlocked",
            "d:owner_2",
            "P:private",
            "p:private_2",
            "O:owner_private",
            "h:arch",
            "c:uncached",
            "f:softdirty",
            "H:arch_2",
            "J:arch_3",
        ],
        32,
    )
)


def kpf_symbols(flags: int, unknown: int = 0) -> str:
    """A letter for each set bit, as page-types prints them; "?" for each unknown bit."""
    return "".join(
        "?" if unknown >> bit & 1 else name[0] if flags >> bit & 1 else "_"
        for bit, name in sorted(KPF_NAMES.items())
    )


def kpf_long(flags: int) -> str:
    """Names of the bits that are set."""
    return ",".join(name[2:] for bit, name in sorted(KPF_NAMES.items()) if flags >> bit & 1)


class Meaning:
    """Interprets states under one kernel's format; all arguments and results are plain ints and strings."""

    def __init__(self, form: PageFormat) -> None:
        self.form = form
        self._head = form.mask("head")
        self._slab = form.mask("slab")
        self._reserved = form.mask("reserved")
        self._hwpoison = form.mask("hwpoison")
        self._lru = form.mask("lru")
        self._swapbacked = form.mask("swapbacked")
        self._swapcache = form.mask("swapcache")
        self._copied = [
            (kpf, form.bits[name])
            for kpf, names in _COPIED
            for name in [next((n for n in names if n in form.bits), "")]
            if name
        ]

    def is_type(self, state: int, name: str) -> bool:
        """Whether page_type says that the page is of a type."""
        return self.form.types.is_type((state & TYPE_MASK) >> TYPE_SHIFT, name)

    def is_slab(self, state: int) -> bool:
        """Whether the page is the first page of a slab."""
        return bool(state & self._slab) or self.is_type(state, "slab")

    def is_hugetlb(self, state: int) -> bool:
        """Whether the page is the head of a hugetlb page."""
        return bool(state & HUGETLB) or self.is_type(state, "hugetlb")

    def is_head(self, state: int) -> bool:
        """Whether the page is the head of a compound page."""
        return bool(state & self._head) and not state & TAIL

    def is_free(self, state: int) -> bool:
        """Whether the page is in a free block of the buddy allocator."""
        return bool(state & IN_FREE_BLOCK) or self.is_type(state, "buddy")

    def is_free_head(self, state: int) -> bool:
        """Whether the page is the first of a free block."""
        return self.is_type(state, "buddy")

    def order(self, state: int, head: int) -> int:
        """Order of the compound page or free block that the page begins, or is a tail of; else 0."""
        whole = head or state
        if self.is_head(whole) or self.is_free_head(whole):
            return (whole & ORDER_MASK) >> ORDER_SHIFT
        return 0

    def flag_names(self, state: int) -> List[str]:
        """Names of the set flags: the first if a bit has several, ``bit3`` if it has none."""
        names: Dict[int, str] = {}
        for name, bit in self.form.bits.items():
            names.setdefault(bit, name)
        return [names.get(bit, f"bit{bit}") for bit in range(self.form.width) if state & FLAGS & 1 << bit]

    def type_of(self, state: int, head: int) -> str:
        """One of :data:`TYPES`.

        :param head: state of the compound page's head for a tail, else 0.
        """
        if state & OFFLINE:
            return "offline"
        if state & NOT_INITIALISED:
            return "uninitialised"
        if state & self._hwpoison:
            return "hwpoison"
        if self.is_free(state):
            return "free"
        if state & DANGLING:
            return "broken"
        whole = head or state
        large = self.is_head(whole)
        if self.is_slab(whole):
            return "slab"
        if large and self.is_hugetlb(whole):
            return "hugetlb_free" if whole & UNREFERENCED else "hugetlb"
        for name, kind in (
            ("table", "pgtable"),
            ("offline", "offline"),
            ("guard", "guard"),
            ("zsmalloc", "zsmalloc"),
            ("unaccepted", "unaccepted"),
            ("large_kmalloc", "large_kmalloc"),
        ):
            if self.is_type(whole, name):
                return kind
        if self.form.types.is_nameless((whole & TYPE_MASK) >> TYPE_SHIFT):
            return "unnamed_type"
        if state & DEVICE:
            return "device"
        if whole & ZERO:
            return "zero"
        if whole & self._reserved:
            return "reserved"
        if whole & ANON:
            if whole & ANON_KSM:
                return "ksm"
            return "thp" if large else "anon"
        if whole & ANON_KSM:
            return "movable"  # PAGE_MAPPING_MOVABLE, until 6.16
        swap = self._swapbacked | self._swapcache
        if whole & HAS_MAPPING:
            return "shmem" if whole & self._swapbacked else "file"
        if whole & self._lru and whole & swap == swap:
            return "swapcache"
        if whole & UNREFERENCED:
            return "free_cpu"
        return "kernel" if self._reserved else "kernel_or_reserved"

    def kpageflags(self, state: int, head: int) -> int:
        """Flags of the page in /proc/kpageflags: fs/proc/page.c:stable_page_flags of this kernel.

        Bits that the format cannot determine are clear.
        """
        return self._kpageflags(state, head) & ~self.form.unknown_flags

    def _kpageflags(self, state: int, head: int) -> int:
        if state & (OFFLINE | DEVICE):
            # include/linux/memory_hotplug.h:pfn_to_online_page finds neither. Until 5.12 it did find device
            # pages that share a section with memory.
            return 1 << KPF_NOPAGE if self.form.tells_nopage else 0
        form = self.form
        whole = head or state
        compound = bool(head) or self.is_head(state)
        # Since 6.10 every page of a folio shows the folio's flags; before that, its own.
        flags = whole if form.folio_flags else state
        u = 0
        mapped = bool(whole & LARGE_MAPPED) if compound else bool(state & MAPPED)
        if mapped and not (self.is_slab(whole) and not form.folio_flags):
            u |= 1 << KPF_MMAP
        if whole & ANON:
            u |= 1 << KPF_ANON
            if whole & ANON_KSM:
                u |= 1 << KPF_KSM
        if state & TAIL:
            u |= 1 << KPF_COMPOUND_TAIL
        elif self.is_head(state):
            u |= 1 << KPF_COMPOUND_HEAD
        u |= self._huge_kpf(state, whole, compound)
        if self.is_free(state):
            u |= 1 << KPF_BUDDY
        typed = whole if form.folio_types else state
        if self.is_type(typed, "offline"):
            u |= 1 << KPF_OFFLINE
        if self.is_type(typed, "table"):
            u |= 1 << KPF_PGTABLE
        if self.is_slab(whole):
            u |= 1 << KPF_SLAB
        for kpf, bit in self._copied:
            u |= (flags >> bit & 1) << kpf
        swap = self._swapbacked | self._swapcache
        if whole & swap == swap:
            u |= 1 << KPF_SWAPCACHE
        poisoned = whole if u & 1 << KPF_HUGE else state
        if poisoned & self._hwpoison:
            u |= 1 << KPF_HWPOISON
        return u

    def _huge_kpf(self, state: int, whole: int, compound: bool) -> int:
        if compound and self.is_hugetlb(whole):
            return 1 << KPF_HUGE
        zero = whole & ZERO
        if self.form.folio_flags:
            if compound and whole & RMAPPABLE:
                return 1 << KPF_THP
        elif compound:
            if whole & (self._lru | ANON):
                return 1 << KPF_THP
            if not zero:
                return 0
        if zero:
            return 1 << KPF_ZERO_PAGE | (1 << KPF_THP if compound else 0)
        return 0
