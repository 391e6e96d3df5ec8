# SPDX-License-Identifier: LGPL-2.1-or-later
"""The region where firmware's runtime services are mapped while the kernel calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterator, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import ALL, EFI_VA_END, EFI_VA_START, PAGE_SHIFT, PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import Absent, Address, AddressRange, Asked, Column, Contents, Located, Root, Size, Table
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import View
from kvintro.readers.processes import physical_of
from kvintro.readers.structures import TROUBLE, number, size_of, struct_at
from kvintro.regions import RANGE_COLUMNS, Region, fixed_place, mapped_ranges

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


_EFI_INFO = 0x1C0
_MM_SIZE = 512  # bytes of a struct mm_struct that include pgd
_MAX_DESCRIPTORS = 1 << 14
_RUNTIME = 1 << 63
# UEFI specification, 7.2.3 (EFI_MEMORY_TYPE) and include/linux/efi.h.
_TYPES = (
    "Reserved",
    "Loader Code",
    "Loader Data",
    "Boot Code",
    "Boot Data",
    "Runtime Code",
    "Runtime Data",
    "Conventional",
    "Unusable",
    "ACPI Reclaim",
    "ACPI Mem NVS",
    "MMIO",
    "MMIO Port",
    "PAL Code",
    "Persistent",
    "Unaccepted",
)
_ATTRIBUTES = (
    (0, "UC"),
    (1, "WC"),
    (2, "WT"),
    (3, "WB"),
    (4, "UCE"),
    (12, "WP"),
    (13, "RP"),
    (14, "XP"),
    (15, "NV"),
    (16, "MR"),
    (17, "RO"),
    (18, "SP"),
    (19, "CC"),
    (63, "RUNTIME"),
)


@dataclass(frozen=True)
class DescriptorRow:
    """An entry of EFI's memory map.

    :ivar type: number of the type.
    :ivar kind: name of the type.
    :ivar physical: physical address.
    :ivar start: virtual address while the services run; None if it has none.
    :ivar rights: rights in ``efi_mm``, in the order of addresses.
    """

    type: int
    kind: str
    attribute: int
    attributes: Tuple[str, ...]
    physical: Address
    pages: int
    size: Size
    start: Optional[Address]
    end: Optional[Address]
    mapped: Size
    rights: Tuple[str, ...]
    problem: Optional[str]


_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("physical", "physical", spare=1),
    Column("kind", "type"),
    Column("rights", "rights"),
    Column("attributes", "attributes", spare=2),
    Column("problem", ""),
)


class Efi(Region):
    """``EFI_VA_END .. EFI_VA_START`` (END is the lower one, as the kernel allocates addresses downwards).

    Mapped by a separate root, ``efi_mm.pgd`` (arch/x86/platform/efi/efi_64.c:efi_alloc_page_tables).
    """

    key = "efi"
    row = 11
    name = "EFI runtime services"
    macro = "EFI_VA_END"
    traits = Trait.OTHER_ROOTS

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.has_symbol("efi_alloc_page_tables", code=True):
            return Absent("CONFIG_EFI is off")
        if not self._pgd(kernel):
            return Absent("not booted by EFI")
        return fixed_place(AddressRange(EFI_VA_END, EFI_VA_START - 1))

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        return (Root(physical_of(kernel, self._pgd(kernel)), "efi_mm"),)

    def also_mapped(self, kernel: Kernel) -> Sequence[AddressRange]:
        # Memory is also mapped at its physical address (efi_64.c:efi_map_region).
        return (kernel.form.user,)

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """The runtime map that the kernel keeps, compared with ``efi_mm``'s tables."""
        damage = Damage()
        (root,) = self.roots(kernel)
        where = AddressRange(EFI_VA_END, EFI_VA_START - 1)
        ranges = mapped_ranges(kernel, root, where)
        try:
            rows = list(_descriptors(kernel, root, damage))
        except Unavailable as error:
            return Contents(
                (
                    Table("descriptors", _COLUMNS, ()),
                    Table("ranges", RANGE_COLUMNS, ranges, "mapped by efi_mm"),
                ),
                {"mapped": Size(sum(row.size for row in ranges))},
                (*damage.notes, f"EFI's memory map cannot be read: {error.what}"),
                partial=True,
            )
        covered = sum(row.mapped for row in rows if row.start is not None and row.start in where)
        mapped = sum(row.size for row in ranges)
        notes = [*damage.notes]
        notes += [f"{row.physical:016x} ({row.kind}): {row.problem}" for row in rows if row.problem][:8]
        if mapped != covered and not damage:
            notes.append(f"{mapped - covered} mapped bytes are in no descriptor")
        writable = [row for row in rows if any("w" in r and "x" in r for r in row.rights)]
        if writable:
            notes.append(f"{len(writable)} descriptors are mapped writable and executable")
        totals = {
            "descriptors": len(rows),
            "runtime": sum(row.start is not None for row in rows),
            "size": Size(sum(row.size for row in rows if row.start is not None)),
            "mapped": Size(mapped),
        }
        return Contents(
            (
                Table("descriptors", _COLUMNS, rows),
                Table("ranges", RANGE_COLUMNS, ranges, "mapped by efi_mm"),
            ),
            totals,
            notes,
            partial=bool(damage),
        )

    def _pgd(self, kernel: Kernel) -> int:
        """Address of ``efi_mm``'s root table; 0 if there is none.

        :raises Unavailable: the source does not contain it.
        """
        if kernel.source.types == "none":
            return _root_by_content(kernel)
        try:
            return int(kernel.prog["efi_mm"].pgd.value_())
        except TROUBLE as error:
            if not _booted_by_efi(kernel):
                return 0
            raise Unavailable(f"efi_mm cannot be read: {kernel.why(error)}") from error


def _booted_by_efi(kernel: Kernel) -> bool:
    """Whether the boot loader passed on firmware's signature.

    :raises Unavailable: the source does not contain it.
    """
    # Documentation/arch/x86/zero-page.rst: efi_info, of which the first member is the signature.
    return kernel.read(kernel.symbol("boot_params") + _EFI_INFO, 4) in (b"EL32", b"EL64")


def _root_by_content(kernel: Kernel) -> int:
    """Address of the root table that ``efi_mm`` points to, found by its content; 0 if not booted by EFI.

    Its kernel half equals that of ``init_top_pgt`` (efi_sync_low_kernel_mappings), except for firmware's
    part. No other table has this property, and the other pointers in an mm do not point to tables.

    :raises Unavailable: the source does not contain it.
    """
    if not _booted_by_efi(kernel):
        return 0
    start = kernel.symbol("efi_mm")
    data = kernel.read(start, _MM_SIZE)
    own = kernel.read_physical(kernel.root.value, PAGE_SIZE)
    base = kernel.linear_offset.value
    first, last = (8 * kernel.form.index(at, kernel.form.levels) for at in (base, EFI_VA_END))
    where = AddressRange(EFI_VA_END, EFI_VA_START - 1)
    for at in range(0, len(data), 8):
        pointer = int.from_bytes(data[at : at + 8], "little")
        if pointer % PAGE_SIZE or not 0 <= pointer - base < 1 << kernel.facts.max_physmem_bits.value:
            continue
        try:
            table = kernel.read(pointer, PAGE_SIZE)
            if not any(table[first:last]) or table[first:last] != own[first:last]:
                continue
            if mapped_ranges(kernel, Root(physical_of(kernel, pointer), "efi_mm"), where):
                return pointer
        except Unavailable:
            continue
    raise Unavailable("efi_mm cannot be read without types, and its page tables cannot be found otherwise")


def _descriptors(kernel: Kernel, root: Root, damage: Damage) -> Iterator[DescriptorRow]:
    """``for_each_efi_memory_desc()``: the stride is given by firmware, not by the size of the structure."""
    memmap = struct_at(kernel, "struct efi", kernel.symbol("efi")).memmap
    base, count, stride = number(memmap, "map"), number(memmap, "nr_map"), number(memmap, "desc_size")
    least = size_of(kernel, "efi_memory_desc_t")
    if not 0 <= count <= _MAX_DESCRIPTORS or not least <= stride <= 4096:
        raise Unavailable(f"invalid EFI memory map: {count} descriptors of {stride} bytes")
    if base + count * stride != number(memmap, "map_end"):
        damage.add(
            "EFI's memory map does not end where its size says",
            f"{count} descriptors of {stride} bytes from {base:016x} to {number(memmap, 'map_end'):016x}",
        )
    for index in range(count):
        try:
            descriptor = struct_at(kernel, "efi_memory_desc_t", base + index * stride)
        except Unavailable as error:
            damage.add("an EFI descriptor cannot be read", error.what)
            continue
        kind, attribute = number(descriptor, "type"), number(descriptor, "attribute")
        physical, virtual = number(descriptor, "phys_addr"), number(descriptor, "virt_addr")
        pages = number(descriptor, "num_pages")
        size = pages << PAGE_SHIFT
        used = bool(attribute & _RUNTIME and virtual and size and virtual + size <= ALL)
        rights: Tuple[str, ...] = ()
        mapped, problem = 0, None
        if used:
            found = View.of(kernel, virtual, virtual + size - 1, root.table).stretch(
                virtual, virtual + size - 1
            )
            rights, mapped = found.rights, found.mapped
            first, last = (kernel.walk(at, root.table).physical for at in (virtual, virtual + size - 1))
            if found.unreadable:
                pass
            elif mapped != size:
                problem = f"{mapped} of {size} bytes are mapped"
            elif (first, last) != (physical, physical + size - 1):
                problem = f"{virtual:016x} is {first or 0:x}, not {physical:x}"
        yield DescriptorRow(
            type=kind,
            kind=_TYPES[kind] if kind < len(_TYPES) else f"type {kind:#x}",
            attribute=attribute,
            attributes=tuple(name for bit, name in _ATTRIBUTES if attribute >> bit & 1),
            physical=Address(physical & ALL),
            pages=pages,
            size=Size(size),
            start=Address(virtual) if used else None,
            end=Address(virtual + size - 1) if used else None,
            mapped=Size(mapped),
            rights=rights,
            problem=problem,
        )


REGION = Efi()
