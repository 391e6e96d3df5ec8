# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory areas of a process, with names as in /proc/PID/maps (fs/proc/task_mmu.c:show_map_vma)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import drgn

from kvintro.errors import Unavailable
from kvintro.readers.damage import Damage
from kvintro.readers.index_trees import maple_entries
from kvintro.readers.lists import claims, linked_entries
from kvintro.readers.processes import Process
from kvintro.readers.structures import (
    LONGEST_TEXT,
    TROUBLE,
    has_member,
    number,
    offset_of,
    optional,
    size_of,
    struct_at,
    text_at,
)

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

VM_READ, VM_WRITE, VM_EXEC, VM_MAYSHARE = 1, 2, 4, 0x80
_MAX_VMAS = 1 << 20  # vm.max_map_count is 65530 unless raised
_MAX_DEPTH = 256  # components of a path
_MAX_NAME = LONGEST_TEXT
_FMODE_BACKING = 1 << 24
_HAS_VSYSCALL = 2  # arch/x86/include/asm/mmu.h: MM_CONTEXT_HAS_VSYSCALL as a mask
_MINOR_BITS = 20


class Vma(NamedTuple):
    """A memory area; ``end`` is inclusive.

    :ivar flags: ``vm_flags``.
    :ivar offset: offset into the file, in bytes.
    :ivar device: major and minor number of the file's file system.
    :ivar name: name as /proc/PID/maps prints it, empty if none.
    :ivar mapping: address of the mapped file's ``struct address_space``, 0 if none.
    :ivar gate: whether it is the vsyscall page, which is in no process's list.
    """

    start: int
    end: int
    flags: int
    offset: int
    device: Tuple[int, int]
    inode: int
    name: str
    mapping: int = 0
    gate: bool = False


def vmas_of(kernel: Kernel, process: Process, mm: drgn.Object, damage: Damage) -> List[Vma]:
    """Areas of a process, in order of address. The last one may be the vsyscall page."""
    reader = _Reader(kernel, mm, damage)
    found: List[Vma] = []
    page = kernel.form.page_size
    for address, place in _addresses(kernel, process, mm, damage):
        try:
            vma = struct_at(kernel, "struct vm_area_struct", address)
            start, end = number(vma, "vm_start"), number(vma, "vm_end")
            if not 0 <= start < end <= 1 << 63 or start % page or end % page:
                damage.add("the bounds of a memory area are invalid", f"{start:#x}-{end:#x}")
                continue
            if place is not None and place != (start, end - 1):
                damage.add(
                    "a memory area is not at the address that its tree has for it", f"{start:#x}-{end:#x}"
                )
                continue
            found.append(reader.read(vma, start, end))
        except TROUBLE as error:
            damage.add("a memory area cannot be read", f"{address:016x}: {error}")
    found.sort(key=lambda vma: vma.start)
    gate = reader.gate()
    return found if gate is None else [*found, gate]


def _addresses(
    kernel: Kernel, process: Process, mm: drgn.Object, damage: Damage
) -> Iterator[Tuple[int, Optional[Tuple[int, int]]]]:
    """Addresses of each ``struct vm_area_struct``, with the first and last address that a tree has for it.

    They are in a maple tree since 763ecb035029 "mm: remove the vma linked list" (6.1), before that in a list.
    """
    what = f"the list of pid {process.pid}'s memory areas"
    if has_member(kernel, "struct mm_struct", "mm_mt"):
        claim = claims(kernel, "struct vm_area_struct", size_of(kernel, "struct vm_area_struct"), process.mm)
        seen: Set[int] = set()
        tree = process.mm + offset_of(kernel, "struct mm_struct", "mm_mt")
        for first, last, address in maple_entries(kernel, tree, damage, what, limit=_MAX_VMAS):
            if address not in seen:
                seen.add(address)
                try:
                    claim(address)
                except Unavailable as error:
                    damage.add(f"{what} ends early", f"after {len(seen)} entries: {error.what}")
                    return
                yield address, (first, last)
        return
    for address, _ in linked_entries(
        kernel,
        number(mm, "mmap"),
        "struct vm_area_struct",
        "vm_next",
        process.mm,
        damage,
        what,
        _MAX_VMAS,
    ):
        yield address, None


class _Reader:
    """Reads areas of one process. Reads data that many of them share only once."""

    def __init__(self, kernel: Kernel, mm: drgn.Object, damage: Damage) -> None:
        self._kernel = kernel
        self._mm = mm
        self._damage = damage
        self._files: Dict[int, Tuple[Tuple[int, int], int, str, int]] = {}
        self._special = kernel.find_symbol("special_mapping_name")
        self._backing = has_member(kernel, "struct backing_file", "user_path")
        # Up to 6.1 an area's name shares a union with fields for files.
        self._names = has_member(kernel, "struct vm_area_struct", "anon_name")
        self._named_files = self._names and offset_of(
            kernel, "struct vm_area_struct", "anon_name"
        ) != offset_of(kernel, "struct vm_area_struct", "shared")

    def read(self, vma: drgn.Object, start: int, end: int) -> Vma:
        file = number(vma, "vm_file")
        flags = number(vma, "vm_flags")
        offset, device, inode, mapping = 0, (0, 0), 0, 0
        if file:
            offset = number(vma, "vm_pgoff") << self._kernel.page_shift
            device, inode, path, mapping = self._file(file)
            name = self._anonymous_name(vma, "anon_shmem") if self._named_files else ""
            name = name or path
        else:
            name = self._name(vma, start, end)
        return Vma(start, end - 1, flags, offset, device, inode, name, mapping)

    def gate(self) -> Optional[Vma]:
        """The vsyscall page (arch/x86/entry/vsyscall/vsyscall_64.c:get_gate_vma)."""
        if not self._kernel.has_symbol("map_vsyscall", code=True):
            return None
        try:
            if self._kernel.value("vsyscall_mode", 4).value == 2 or not self._may_have_gate():
                return None
            gate = struct_at(self._kernel, "struct vm_area_struct", self._kernel.symbol("gate_vma"))
            start, end = number(gate, "vm_start"), number(gate, "vm_end")
        except TROUBLE as error:
            self._damage.add("whether there is a vsyscall page is not known", str(error))
            return None
        return Vma(start, end - 1, number(gate, "vm_flags"), 0, (0, 0), 0, "[vsyscall]", gate=True)

    def _may_have_gate(self) -> bool:
        """Whether the process runs in 64-bit mode, by a flag; up to 5.10 by a number for 32-bit mode."""
        context = self._mm.context
        if context.type_.type.has_member("flags"):
            return bool(number(context, "flags") & _HAS_VSYSCALL)
        return not number(context, "ia32_compat")

    def _name(self, vma: drgn.Object, start: int, end: int) -> str:
        """get_vma_name() of an area without a file."""
        operations = number(vma, "vm_ops")
        if operations and self._special is not None:
            ops = struct_at(self._kernel, "struct vm_operations_struct", operations)
            if number(ops, "name") == self._special:
                mapping = struct_at(self._kernel, "struct vm_special_mapping", number(vma, "vm_private_data"))
                return text_at(self._kernel, number(mapping, "name"), 256)
        heap, heap_end = number(self._mm, "start_brk"), number(self._mm, "brk")
        if start < heap_end and end > heap:
            return "[heap]"
        if start <= number(self._mm, "start_stack") <= end:
            return "[stack]"
        return self._anonymous_name(vma, "anon") if self._names else ""

    def _anonymous_name(self, vma: drgn.Object, kind: str) -> str:
        """Name that the process itself gave the area (PR_SET_VMA_ANON_NAME)."""
        address = number(vma, "anon_name")
        if not address:
            return ""
        at = address + offset_of(self._kernel, "struct anon_vma_name", "name")
        return f"[{kind}:{text_at(self._kernel, at, 256)}]"

    def _file(self, address: int) -> Tuple[Tuple[int, int], int, str, int]:
        """(device, inode, path, mapping) of a file."""
        known = self._files.get(address)
        if known is not None:
            return known
        device, inode, path, mapping = (0, 0), 0, "", 0
        try:
            path_at = struct_at(self._kernel, "struct file", address)
            mapping = number(path_at, "f_mapping")
            where = path_at.f_path
            node = number(path_at, "f_inode")
            if self._backing and number(path_at, "f_mode") & _FMODE_BACKING:
                # For a stacked file system the user sees the upper file.
                where = struct_at(self._kernel, "struct backing_file", address).user_path
                node = number(struct_at(self._kernel, "struct dentry", number(where, "dentry")), "d_inode")
            if node:
                info = struct_at(self._kernel, "struct inode", node)
                inode = number(info, "i_ino")
                number_of = number(
                    struct_at(self._kernel, "struct super_block", number(info, "i_sb")), "s_dev"
                )
                device = number_of >> _MINOR_BITS, number_of & (1 << _MINOR_BITS) - 1
            path = path_text(self._kernel, number(where, "mnt"), number(where, "dentry"))
        except TROUBLE as error:
            self._damage.add("a mapped file cannot be read", f"{address:016x}: {error}")
        self._files[address] = device, inode, path, mapping
        return self._files[address]


def path_text(kernel: Kernel, mount: int, dentry: int) -> str:
    """Path of a file from the root of its mount namespace, as ``d_path()`` (fs/d_path.c) writes it.

    :raises Unavailable: a part of the path is not in the source.
    """
    mount_offset = offset_of(kernel, "struct mount", "mnt")
    entry = struct_at(kernel, "struct dentry", dentry)
    mnt = struct_at(kernel, "struct mount", mount - mount_offset)
    root = number(mnt.mnt, "mnt_root")
    deleted = (
        " (deleted)" if not number(entry.d_hash, "pprev") and number(entry, "d_parent") != dentry else ""
    )
    operations = number(entry, "d_op")
    if (operations and dentry != root) or (operations and number(entry, "d_parent") != dentry):
        own = _own_name(kernel, operations, entry)
        if own is not None:
            return own
    parts: List[str] = []
    address = dentry
    mount_address = mount - mount_offset
    seen: Set[Tuple[int, int]] = set()
    while (address, mount_address) not in seen and len(parts) < _MAX_DEPTH:
        seen.add((address, mount_address))
        if address == number(mnt.mnt, "mnt_root"):
            parent = number(mnt, "mnt_parent")
            if parent == mount_address:
                break
            address = number(mnt, "mnt_mountpoint")
            mount_address = parent
            mnt = struct_at(kernel, "struct mount", mount_address)
            continue
        entry = struct_at(kernel, "struct dentry", address)
        parent = number(entry, "d_parent")
        if parent == address:
            break
        parts.append(_component(kernel, entry))
        address = parent
    # seq_path() escapes newlines, so that a line remains a line.
    return ("/" + "/".join(reversed(parts)) + deleted).replace("\\n", "\\\\012")


def _component(kernel: Kernel, entry: drgn.Object) -> str:
    name = entry.d_name
    return text_at(kernel, number(name, "name"), min(number(name, "len"), _MAX_NAME))


def _own_name(kernel: Kernel, operations: int, entry: drgn.Object) -> Optional[str]:
    """Result of ``d_dname()`` of a file system without paths; None if the file system has paths."""
    function = number(struct_at(kernel, "struct dentry_operations", operations), "d_dname")
    if not function:
        return None
    name = _component(kernel, entry)
    if function == kernel.find_symbol("simple_dname"):
        return f"/{name} (deleted)"
    if function == kernel.find_symbol("anon_inodefs_dname"):
        return f"anon_inode:{name}"
    kind = ""
    inode = number(entry, "d_inode")
    if inode:
        found = struct_at(kernel, "struct inode", inode)
        for symbol, text in (("pipefs_dname", "pipe"), ("sockfs_dname", "socket")):
            if function == kernel.find_symbol(symbol):
                return f"{text}:[{number(found, 'i_ino')}]"
        super_block = struct_at(kernel, "struct super_block", number(found, "i_sb"))
        file_system = optional(super_block, "s_type")
        if file_system is not None and file_system:
            kind = text_at(
                kernel, number(struct_at(kernel, "struct file_system_type", file_system.value_()), "name"), 64
            )
    return f"[{kind or 'file system without paths'}]"
