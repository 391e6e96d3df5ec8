# SPDX-License-Identifier: LGPL-2.1-or-later
"""A simulation of the kernel's random choices, step by step after its sources, to compare with ``kvintro
kaslr``.

Written from the sources of Linux 6.1.192, 6.12.117 and 7.3.4, in which these functions are the same except as
noted. Nothing here comes from kvintro. Names are the kernel's. A ``rand`` argument is a function
that returns 64 random bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Callable, Iterator, List, Sequence, Tuple

Rand = Callable[[], int]

KB, MB, GB, TB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PAGE_SIZE = 4 * KB
PUD_SIZE = GB
MIN_KERNEL_ALIGN = 2 * MB
KERNEL_IMAGE_SIZE = GB
CPU_ENTRY_AREA_BASE = 0xFFFF_FE00_0000_0000
CPU_ENTRY_AREA_MAP_SIZE = 512 * GB
MODULES_VADDR, MODULES_END = 0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_FF00_0000
MAX_SLOT_AREA = 100
E820_TYPE_RAM = 1


def align(value: int, to: int) -> int:
    """ALIGN()."""
    return (value + to - 1) // to * to


# --- arch/x86/boot/compressed: where the image goes


@dataclass
class Boot:
    """The input of the unpacker (ZO).

    :ivar e820: (start, size, type).
    :ivar startup_32: where the boot loader put ZO.
    :ivar payload_offset: of input_data from startup_32.
    :ivar output_len: bytes of the unpacked kernel (VO) and its relocations.
    :ivar total: ``kernel_total_size``, _end - _text of VO.
    :ivar taken: (start, size) of initrd, command line and boot_params.
    :ivar immovable: (start, size) of memory that an SRAT does not call hot-pluggable.
    """

    e820: Sequence[Tuple[int, int, int]]
    startup_32: int
    init_size: int
    payload_offset: int
    payload_length: int
    output_len: int
    total: int
    taken: Sequence[Tuple[int, int]]
    immovable: Sequence[Tuple[int, int]] = ()
    load_physical_addr: int = 16 * MB
    physical_align: int = 2 * MB
    mem_limit: int = 1 << 46
    slot_areas: List[Tuple[int, int]] = field(default_factory=list)

    @property
    def zo_end(self) -> int:
        """ZO's _end, from header.S: INIT_SIZE = ZO__end - ZO_startup_32 + ZO_z_min_extract_offset."""
        extra = (self.output_len >> 8) + 131072
        extract_offset = self.output_len + extra - self.payload_length
        return self.init_size - ((extract_offset + 4095) & ~4095)

    @property
    def output(self) -> int:
        """head_64.S:startup_64, in %rbp."""
        return max(align(self.startup_32, self.physical_align), self.load_physical_addr)

    @property
    def input(self) -> int:
        """input_data after ZO was copied to the end of the buffer (head_64.S, %rbx)."""
        return self.output + self.init_size - self.zo_end + self.payload_offset

    @property
    def needed_size(self) -> int:
        """misc.c:extract_kernel."""
        return align(max(self.output_len, self.total), MIN_KERNEL_ALIGN)


def mem_avoid(boot: Boot) -> List[Tuple[int, int]]:
    """kaslr.c:mem_avoid_init; (start, size)."""
    return [(boot.input, boot.output + boot.init_size - boot.input), *boot.taken]


def mem_avoid_overlap(boot: Boot, start: int, size: int) -> Tuple[int, int]:
    """kaslr.c; the first overlap, or (0, 0) if there is none."""
    earliest, found = start + size, (0, 0)
    for at, length in mem_avoid(boot):
        if start + size > at and start < at + length and at < earliest:
            earliest, found = at, (at, length)
    return found


def process_mem_region(boot: Boot, start: int, size: int, minimum: int, image_size: int) -> None:
    """kaslr.c:__process_mem_region."""
    at, region_end = max(start, minimum), min(start + size, boot.mem_limit)
    while len(boot.slot_areas) < MAX_SLOT_AREA:
        at = align(at, boot.physical_align)
        if at > region_end or region_end - at < image_size:
            return
        over, length = mem_avoid_overlap(boot, at, region_end - at)
        if not length:
            store_slot_info(boot, at, region_end - at, image_size)
            return
        if over >= at + image_size:
            store_slot_info(boot, at, over - at, image_size)
        at = over + length


def store_slot_info(boot: Boot, start: int, size: int, image_size: int) -> None:
    """kaslr.c."""
    if len(boot.slot_areas) < MAX_SLOT_AREA:
        boot.slot_areas.append((start, 1 + (size - image_size) // boot.physical_align))


def find_slots(boot: Boot) -> int:
    """kaslr.c:choose_random_location, process_e820_entries and process_mem_region; ``slot_max``."""
    min_addr = align(min(boot.output, 512 * MB), boot.physical_align)
    boot.slot_areas.clear()
    if min_addr + boot.needed_size <= boot.mem_limit:
        for start, size, kind in boot.e820:
            if kind != E820_TYPE_RAM:
                continue
            # process_mem_region(): entry by entry of the SRAT, if there is one.
            for low, length in boot.immovable or [(start, size)]:
                first, end = max(start, low), min(start + size, low + length)
                if first < end:
                    process_mem_region(boot, first, end - first, min_addr, boot.needed_size)
    return sum(num for _, num in boot.slot_areas)


def slots_fetch(boot: Boot, slot: int) -> int:
    """kaslr.c:slots_fetch_random, for a slot that was already chosen."""
    for addr, num in boot.slot_areas:
        if slot < num:
            return addr + slot * boot.physical_align
        slot -= num
    raise AssertionError("slots_fetch_random() failed!?")


def physical_places(boot: Boot) -> List[int]:
    """Every possible place; none if the image stays at ``output``."""
    return [slots_fetch(boot, slot) for slot in range(find_slots(boot))]


def find_random_phys_addr(boot: Boot, rand: Rand) -> int:
    """The value of ``output`` after choose_random_location()."""
    slot_max = find_slots(boot)
    return slots_fetch(boot, rand() % slot_max) if slot_max else boot.output


def virtual_slots(boot: Boot) -> int:
    """kaslr.c:find_random_virt_addr, ``slots``."""
    minimum = boot.load_physical_addr
    return 1 + (KERNEL_IMAGE_SIZE - minimum - boot.needed_size) // boot.physical_align


def find_random_virt_addr(boot: Boot, rand: Rand) -> int:
    """Offset from __START_KERNEL_map."""
    return rand() % virtual_slots(boot) * boot.physical_align + boot.load_physical_addr


def efi_virt_addr(total: int, seed: int) -> int:
    """drivers/firmware/efi/libstub/x86-stub.c:efi_decompress_kernel (not in 6.1).

    :param seed: ``seed[1]``, 32 bits.
    """
    span = KERNEL_IMAGE_SIZE - 16 * MB - total
    return 16 * MB + (span * seed >> 32) & ~(2 * MB - 1)


# --- arch/x86/mm/kaslr.c: the direct map, vmalloc and vmemmap


@dataclass(frozen=True)
class Memory:
    """The input of kernel_randomize_memory().

    :ivar zone_device: whether the direct map keeps its full size: CONFIG_PCI_P2PDMA since 7ffb791423c7, or
        CONFIG_ZONE_DEVICE since 269031b15c14.
    :ivar padding: CONFIG_RANDOMIZE_MEMORY_PHYSICAL_PADDING, 10 with MEMORY_HOTPLUG, else 0.
    """

    levels: int
    max_pfn: int
    page_struct: int
    zone_device: bool = True
    padding: int = 10

    @property
    def vaddr_start(self) -> int:
        """__PAGE_OFFSET_BASE_L4 or _L5."""
        return 0xFF11_0000_0000_0000 if self.levels == 5 else 0xFFFF_8880_0000_0000

    @property
    def size_tb(self) -> List[int]:
        """Sizes of the three regions."""
        physical_bits, vmalloc_tb = (52, 12800) if self.levels == 5 else (46, 32)
        direct = 1 << (physical_bits - 40)
        memory_tb = align(self.max_pfn << 12, TB) // TB + self.padding
        if not self.zone_device and memory_tb < direct:
            direct = memory_tb
        vmemmap_size = (direct << (40 - 12)) * self.page_struct
        return [direct, vmalloc_tb, align(vmemmap_size, TB) // TB]


def kernel_randomize_memory(memory: Memory, rand: Rand) -> Tuple[List[int], List[int]]:
    """(bases, number of places of each, given those before it)."""
    vaddr, sizes = memory.vaddr_start, memory.size_tb
    remain_entropy = CPU_ENTRY_AREA_BASE - vaddr - sum(size << 40 for size in sizes)
    bases, places = [], []
    for i, size in enumerate(sizes):
        entropy = remain_entropy // (len(sizes) - i)
        # Every multiple of PUD_SIZE up to the highest that (rand % (entropy + 1)) & PUD_MASK gives.
        places.append(len(range(0, entropy + 1, PUD_SIZE)))
        entropy = rand() % (entropy + 1) & ~(PUD_SIZE - 1)
        vaddr += entropy
        bases.append(vaddr)
        vaddr += size << 40
        vaddr = align(vaddr + 1, PUD_SIZE)
        remain_entropy -= entropy
    return bases, places


def replay(memory: Memory, bases: Sequence[int]) -> List[int]:
    """The numbers of places in the boot that resulted in these bases.

    :raises StopIteration: no random value gives them.
    """
    vaddr = memory.vaddr_start
    draws = []
    for base, size in zip(bases, memory.size_tb):
        draws.append(base - vaddr)
        vaddr = align(base + (size << 40) + 1, PUD_SIZE)
    given: Iterator[int] = iter(draws)
    found, places = kernel_randomize_memory(memory, lambda: next(given))
    if found != list(bases):
        raise StopIteration
    return places


# --- modules


@dataclass(frozen=True)
class ModuleSpace:
    """How pieces of module memory are placed.

    :ivar module_align: MODULE_ALIGN (include/linux/execmem.h; before 6.10 moduleloader.h).
    :ivar rox: whether text has EXECMEM_ROX_CACHE.
    """

    module_align: int
    rox: bool


def module_start(rand: Rand) -> int:
    """arch/x86/mm/init.c:execmem_arch_setup; 6.1 arch/x86/kernel/module.c:get_module_load_offset."""
    return MODULES_VADDR + (1 + rand() % 1024) * PAGE_SIZE


def first_piece(space: ModuleSpace, start: int, text: bool) -> int:
    """The address of the first piece in an empty region.

    Text of the ROX cache is a multiple of PMD_SIZE in size (mm/execmem.c:execmem_cache_populate_alloc), which
    mm/vmalloc.c:__vmalloc_node_range_noprof aligns to PMD_SIZE; alloc_vmap_area() takes the lowest place.
    """
    return align(start, max(space.module_align, 2 * MB if space.rox and text else 1))


def module_places(space: ModuleSpace, text: bool) -> List[int]:
    """Every possible first place, from all 1024 random values."""
    return sorted({first_piece(space, module_start(lambda n=n: n), text) for n in range(1024)})  # type: ignore[misc]


# --- arch/x86/mm/cpu_entry_area.c, 6.2 and later


def init_cea_offsets(cpus: int, cea_size: int, rand: Rand) -> List[int]:
    """``_cea_offset`` of each possible CPU."""
    max_cea = (CPU_ENTRY_AREA_MAP_SIZE - PAGE_SIZE) // cea_size
    offsets = [0] * cpus  # per-CPU memory starts as zeros
    for i in range(cpus):
        while True:
            cea = rand() % max_cea
            # The kernel's loop over j breaks at i, after the comparison with i's own offset.
            if cea not in offsets[: i + 1]:
                break
        offsets[i] = cea
    return offsets


def cea_places(before: Sequence[int], cea_size: int) -> int:
    """The number of random values that are accepted for the CPU after those with these offsets."""
    max_cea = (CPU_ENTRY_AREA_MAP_SIZE - PAGE_SIZE) // cea_size
    refused = {*before, 0}
    return sum(cea not in refused for cea in range(max_cea))


# --- arch/x86/kernel/espfix_64.c:init_espfix_random


def espfix_place(rand: int) -> int:
    """Offset of the first CPU's stack in the region (espfix_base_addr)."""
    stacks_per_page, page_space = PAGE_SIZE // 64, (512 * GB) // (PAGE_SIZE << 16)
    slot, page = rand % stacks_per_page, rand // stacks_per_page & (page_space - 1)
    addr = (page << 12) + slot * 64
    return (addr & 0xFFFF) | (addr & ~0xFFFF) << 16


# --- the messages of a boot


def srat_of(dmesg: str) -> List[Tuple[int, int]]:
    """acpi.c:count_immovable_mem_regions, from the kernel's own messages about the table."""
    lines = re.findall(r"SRAT: Node \d+ PXM \d+ \[mem 0x(\w+)-0x(\w+)\](.*)", dmesg)
    return [(int(a, 16), int(b, 16) + 1 - int(a, 16)) for a, b, more in lines if "hotplug" not in more]


def e820_of(dmesg: str) -> List[Tuple[int, int, int]]:
    """``BIOS-e820`` lines, as the boot loader's table has them."""
    lines = re.findall(r"BIOS-e820: \[mem 0x(\w+)-0x(\w+)\] +(.*)", dmesg)
    ram = ("usable", "System RAM")
    return [
        (int(a, 16), int(b, 16) + 1 - int(a, 16), E820_TYPE_RAM if kind in ram else 2) for a, b, kind in lines
    ]
