# SPDX-License-Identifier: LGPL-2.1-or-later
"""Variables of kernels whose symbol table has code only (CONFIG_KALLSYMS_ALL is off).

VMCOREINFO has the addresses of some. From those a few more follow, by members of structures alone; each is
believed when what lies there says the same.
"""

from __future__ import annotations

import contextlib
import re
from functools import cached_property
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import drgn
from drgn.helpers.linux.mm import virt_to_phys

from kvintro.source.kallsyms import READ_ERRORS, KallsymsError, KallsymsSymbol, vmcoreinfo_symbols
from kvintro.source.note import text_of
from kvintro.source.scan import image_of, in_image, pieces

__all__ = ("Unnamed",)

_ROOT = ("swapper_pg_dir", "init_top_pgt")  # a macro for the other, whichever VMCOREINFO has
_MAX_NODES = 1 << 10  # MAX_NUMNODES with CONFIG_NODES_SHIFT=10, its largest value
_START_KERNEL_MAP = 0xFFFFFFFF80000000
_MAX_VMAP_NODES, _VMAP_ZONE = 128, 16 << 12  # vmap_init_nodes()
_MAX_AREAS = 1 << 18
_LARGE_PAGE = 1 << 21
_MAX_FREED = 64 << 20  # __init_begin to __init_end
# The lowest place that modules have begun at, and MODULES_END.
_MODULES, _MODULES_END = 0xFFFFFFFFA0000000, 0xFFFFFFFFFF000000
# boot_params.hdr.boot_flag and .header, and the offset of the first (Documentation/arch/x86/boot.rst).
_BOOT_MARKS, _BOOT_MARKS_AT = re.compile(rb"\x55\xaa..HdrS", re.DOTALL), 0x1FE
_MAX_BANNER = 400  # bytes before the version
_MAX_GENERATIONS = 4  # kswapd's parent is kthreadd, whose parent is the first task
_TROUBLE = (LookupError, AttributeError, TypeError, KallsymsError, *READ_ERRORS)


class Unnamed:
    """What can be found of them, each when it is asked for.

    :param prog: program with types, as far as there are any.
    """

    def __init__(self, prog: drgn.Program) -> None:
        self._prog = prog
        try:
            self._vmcoreinfo = text_of(prog)
        except LookupError:
            self._vmcoreinfo = ""
        self._symbols = vmcoreinfo_symbols(self._vmcoreinfo)
        self._known: Dict[str, Optional[KallsymsSymbol]] = {}
        #: How many areas may still be looked at in search of their lists; a dump may be made of nothing else.
        self._areas_left = _MAX_AREAS
        self._ways: Mapping[str, Callable[[], Optional[int]]] = {
            "init_task": self._init_task,
            "init_pid_ns": self._init_pid_ns,
            "__start_init_stack": self._init_stack,
            "__end_init_stack": self._init_stack_end,
            "boot_params": self._boot_params,
            "modules": self._modules,
            "node_states": self._node_states,
            "vmap_nodes": lambda: self._vmap_nodes[0],
            "linux_banner": self._linux_banner,
        }

    def find(self, name: str) -> Optional[KallsymsSymbol]:
        """A variable by its name, None if nothing leads to it. Its size is 0 where it is not known."""
        if name not in self._known:
            self._known[name] = None  # whoever is asked on the way
            address = self._address(name)
            if address is not None:
                size = 8 * self._length(name)
                self._known[name] = KallsymsSymbol(name, address, size, "D")
        return self._known[name]

    def value(self, name: str) -> Optional[drgn.Object]:
        """What a variable has that lies where nobody knows."""
        try:
            if name == "min_low_pfn":  # drgn asks for the bounds of RAM
                number = min(node.node_start_pfn.value_() for node in self._nodes())
            elif name == "max_low_pfn":
                number = max((n.node_start_pfn + n.node_spanned_pages).value_() for n in self._nodes())
            elif name == "nr_vmap_nodes":
                number = self._vmap_nodes[1]
            elif name == "vmap_zone_size":
                number = _VMAP_ZONE if self._vmap_nodes[1] else 0
            else:
                return None
            return drgn.Object(self._prog, "unsigned long", number) if number else None
        except _TROUBLE:
            return None

    def tell_direct_map(self) -> None:
        """Let drgn learn where the direct map lies.

        It does so once, by the variable saved_command_line, since that points into it. So does the pointer
        that VMCOREINFO has under the name mem_section, which is lent to it for the time.
        """
        prog, pointer = self._prog, self._symbols.get("mem_section", 0)
        if not 1 << 63 < pointer < _START_KERNEL_MAP:
            return

        def lend(
            prog: drgn.Program, name: str, flags: drgn.FindObjectFlags, filename: Optional[str]
        ) -> Optional[drgn.Object]:
            if name != "saved_command_line":
                return None
            return drgn.Object(prog, prog.pointer_type(prog.void_type()), pointer)

        before = prog.enabled_object_finders()
        prog.register_object_finder("kvintro lent", lend, enable_index=0)
        try:
            virt_to_phys(prog, pointer)
        except _TROUBLE:
            pass  # whoever needs it will say so
        finally:
            prog.set_enabled_object_finders(before)

    def _address(self, name: str) -> Optional[int]:
        for said in _ROOT if name in _ROOT else (name,):
            # What is not in the image is the value of a variable and not its place (mem_section, vmemmap).
            if in_image(self._symbols.get(said, 0)):
                return self._symbols[said]
        way = self._ways.get(name)
        try:
            return None if way is None else way()
        except _TROUBLE:
            return None

    def _length(self, name: str) -> int:
        """Elements of an array of pointers; 0 for what is none."""
        said = re.search(rf"^LENGTH\({name}\)=(\d{{1,8}})$", self._vmcoreinfo, re.M)
        return min(int(said[1]), _MAX_NODES) if said else 0

    def _nodes(self) -> Iterator[drgn.Object]:
        """``struct pglist_data`` of each node."""
        try:
            yield self._prog["contig_page_data"]
        except KeyError:
            yield from (pointer[0] for pointer in self._prog["node_data"] if pointer)

    def _init_task(self) -> Optional[int]:
        """A node's ``kswapd`` is a task, and the first of its forefathers is its own father.

        That one lies in the image; its list of tasks is whole there; and its namespace of names is
        VMCOREINFO's init_uts_ns.
        """
        for node in self._nodes():
            task = node.kswapd.read_()
            for _ in range(_MAX_GENERATIONS):
                if not task:
                    break
                father = task.real_parent.read_()
                if father == task:
                    ours = task.nsproxy.uts_ns.value_() == self._symbols.get("init_uts_ns")
                    whole = task.tasks.next.prev.value_() == task.tasks.address_of_().value_()
                    if ours and whole and in_image(task.value_()) and task.pid.value_() == 0:
                        return int(task.value_())
                    break
                task = father
        return None

    def _init_pid_ns(self) -> Optional[int]:
        """The first task's namespace of processes, the one without a parent."""
        task = self._prog["init_task"]
        namespace = task.nsproxy.pid_ns_for_children
        if in_image(namespace.value_()) and not namespace.parent and namespace.level.value_() == 0:
            return int(namespace.value_())
        return None

    def _init_stack(self) -> Optional[int]:
        stack = self._prog["init_task"].stack.value_()
        return int(stack) if in_image(stack) else None

    def _init_stack_end(self) -> Optional[int]:
        """All stacks have one size; others are areas of vmalloc (CONFIG_VMAP_STACK)."""
        start, link = self._init_stack(), self._prog["init_task"].tasks.next
        pages = drgn.container_of(link, self._prog.type("struct task_struct"), "tasks").stack_vm_area.nr_pages
        return None if start is None else start + (int(pages.value_()) << 12)

    def _boot_params(self) -> Optional[int]:
        """The one place in the image with the marks of a boot sector and of Linux (boot.rst)."""
        found = {
            address + match.start() - _BOOT_MARKS_AT
            for address, data in self._data(overlap=8)
            for match in _BOOT_MARKS.finditer(data)
        }
        return found.pop() if len(found) == 1 else None

    def _modules(self) -> Optional[int]:
        """The head of a list whose first entry is a module: it points back to the head, and to itself.

        Only if a module is loaded; an empty list looks like any other.
        """
        import numpy

        type_ = self._prog.type("struct module")
        link, back = drgn.offsetof(type_, "list"), drgn.offsetof(type_, "mkobj.mod")
        read = self._prog.read_u64

        for address, data in self._data():
            words = numpy.frombuffer(data[: len(data) & -8], "<u8")
            for index in numpy.flatnonzero((words >= _MODULES) & (words < _MODULES_END)).tolist():
                head, first = address + 8 * index, int(words[index])
                with contextlib.suppress(*_TROUBLE):
                    module = first - link
                    if read(first + 8) == head and read(module + back) == module:
                        return int(head)
        return None

    @cached_property
    def _vmap_nodes(self) -> Tuple[Optional[int], int]:
        """(address of the variable, number of nodes): a pointer to an array of nodes whose lists are whole.

        Each area is in the node that its address says (mm/vmalloc.c:addr_to_node_id). A machine with one CPU
        has one node, which is not looked for.
        """
        import numpy

        for address, data in self._data():
            words = numpy.frombuffer(data[: len(data) & -8], "<u8")
            # The array is larger than what kmalloc() keeps in slabs, and so has pages of its own.
            pointers = (words & numpy.uint64(0xFFF) == 0) & (words > 1 << 63) & (words < _START_KERNEL_MAP)
            for index in numpy.flatnonzero(pointers).tolist():
                number = self._nodes_of_areas(int(words[index]))
                if number > 1:
                    return address + 8 * index, number
        return None, 0

    def _nodes_of_areas(self, start: int) -> int:
        """How many ``struct vmap_node`` an array has; 0 if it is none of them."""
        prog = self._prog
        type_, head = prog.type("struct vmap_node"), drgn.offsetof(prog.type("struct vmap_node"), "busy.head")
        link, va_start = (drgn.offsetof(prog.type("struct vmap_area"), name) for name in ("list", "va_start"))
        starts: List[List[int]] = []
        with contextlib.suppress(*_TROUBLE):
            while len(starts) < _MAX_VMAP_NODES:
                first = start + len(starts) * drgn.sizeof(type_) + head
                found: List[int] = []
                last, node = first, prog.read_u64(first)
                while node != first and prog.read_u64(node + 8) == last and self._areas_left:
                    self._areas_left -= 1
                    found.append(prog.read_u64(node - link + va_start))
                    last, node = node, prog.read_u64(node)
                if node != first or prog.read_u64(first + 8) != last:
                    break
                starts.append(found)
        number = len(starts)

        def fits(count: int) -> bool:
            return all(at // _VMAP_ZONE % count == of for of, found in enumerate(starts) for at in found)

        # Were this the beginning of a longer array, a multiple would fit as well.
        more = range(2 * number, _MAX_VMAP_NODES + 1, number or 1)
        return number if number and fits(number) and not any(map(fits, more)) else 0

    def _data(self, overlap: int = 0) -> Iterator[Tuple[int, bytes]]:
        """What the image has from VMCOREINFO's first variable on, and its bss."""
        variables = (address for name, address in self._symbols.items() if name != "_stext")
        start = min(filter(in_image, variables))
        yield from pieces(self._prog.read, start & -4096, self._end(), overlap)

    def _end(self) -> int:
        """Where the image ends. Nothing is behind it, but what was freed in it is mapped no more."""
        at = end = image_of(self._symbols)[1] & -_LARGE_PAGE
        while at < end + _MAX_FREED:
            at += _LARGE_PAGE
            with contextlib.suppress(*READ_ERRORS):
                self._prog.read_u8(at - 1)
                end = at
        return end

    def _node_states(self) -> Optional[int]:
        """``node_online_map`` is a macro for one of them (include/linux/nodemask.h)."""
        online = int(self._prog.constant("N_ONLINE").value_())
        size = int(drgn.sizeof(self._prog.type("nodemask_t")))
        return self._symbols["node_online_map"] - online * size

    def _linux_banner(self) -> Optional[int]:
        """In the image it is the text with the release and the version that init_uts_ns has.

        Ubuntu's ends with a version of its own, in brackets. init/version.c has another text without the
        version, which a later object file replaces (since 6.1).
        """
        names = drgn.Object(self._prog, "struct uts_namespace", address=self._symbols["init_uts_ns"]).name
        release, version = (re.escape(text.string_()) for text in (names.release, names.version))
        pattern = re.compile(
            rb"Linux version %b \([^\0\n]{1,%d} %b(?: \([^\0\n]{,99}\))?\n\0"
            % (release, _MAX_BANNER, version)
        )
        for address, data in pieces(self._prog.read, *image_of(self._symbols), overlap=2 * _MAX_BANNER):
            found = pattern.search(data)
            if found:
                return address + found.start()
        return None
