# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds variables of kernels whose symbol table has code only (CONFIG_KALLSYMS_ALL is off).

VMCOREINFO has the addresses of some. Members of structures lead from these to a few more. Each is accepted
only if the data at its address confirms it.
"""

from __future__ import annotations

import contextlib
import re
from functools import cached_property, partial
from itertools import chain
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import drgn

from kvintro.arch import by_vmcoreinfo
from kvintro.arch.data import UINT64
from kvintro.source.kallsyms import READ_ERRORS, KallsymsError, KallsymsSymbol, vmcoreinfo_symbols
from kvintro.source.note import parse, text_of
from kvintro.source.scan import image_of, in_image, pieces

__all__ = ("Unnamed",)

_MAX_NODES = 1 << 10  # MAX_NUMNODES with CONFIG_NODES_SHIFT=10, its largest value
_MAX_VMAP_NODES, _ZONE_PAGES = 128, 16  # vmap_init_nodes()
_MAX_AREAS = 1 << 18
_STEP = 2 << 20  # of the search for the image's end
_MAX_FREED = 64 << 20  # __init_begin to __init_end
_MARK = 64  # bytes of the longest mark
_MAX_BANNER = 400  # bytes before the version
_MOST_PAGE_SIZE = 64 << 10
#: Comm of the first task, to which init_idle() adds the number of its CPU.
_SWAPPER = re.compile(rb"swapper(?:/0)?\0")
_MAX_SWAPPERS = 64
_MAX_TASKS = 4000  # kernel threads begin early
_MAX_GENERATIONS = 4  # kswapd's parent is kthreadd, whose parent is the first task
_TROUBLE = (LookupError, AttributeError, TypeError, KallsymsError, *READ_ERRORS)


class Unnamed:
    """Finds such variables by name, each on first use.

    :param prog: program with whatever types there are.
    """

    def __init__(self, prog: drgn.Program) -> None:
        self._prog = prog
        try:
            self._vmcoreinfo = text_of(prog)
        except LookupError:
            self._vmcoreinfo = ""
        self._symbols = vmcoreinfo_symbols(self._vmcoreinfo)
        self._lines = parse(self._vmcoreinfo)
        self._arch = by_vmcoreinfo(self._lines)
        self._known: Dict[str, Optional[KallsymsSymbol]] = {}
        #: How many areas may still be read in search of their lists; a dump may consist of nothing else.
        self._areas_left = _MAX_AREAS
        self._ways: Dict[str, Callable[[], Optional[int]]] = {
            "init_task": self._init_task,
            "init_pid_ns": self._init_pid_ns,
            "node_data": self._node_data,
            "__start_init_stack": self._init_stack,
            "__end_init_stack": self._init_stack_end,
            "modules": self._modules,
            "node_states": self._node_states,
            "vmap_nodes": lambda: self._vmap_nodes[0],
            "linux_banner": self._linux_banner,
        }
        if self._arch is not None:
            marked = self._arch.marked_variables.items()
            self._ways.update({name: partial(self._marked, *mark) for name, mark in marked})

    def find(self, name: str) -> Optional[KallsymsSymbol]:
        """A variable by its name; None if it cannot be found. Its size is 0 if unknown."""
        if name not in self._known:
            self._known[name] = None  # for look-ups of the same name during this one
            address = self._address(name)
            if address is not None:
                size = 8 * self._length(name)
                self._known[name] = KallsymsSymbol(name, address, size, "D")
        return self._known[name]

    def value(self, name: str) -> Optional[drgn.Object]:
        """The value of a variable whose address is unknown; None if the value is unknown too."""
        try:
            if name == "min_low_pfn":  # drgn needs the bounds of RAM
                number = min(node.node_start_pfn.value_() for node in self._nodes())
            elif name == "max_low_pfn":
                number = max((n.node_start_pfn + n.node_spanned_pages).value_() for n in self._nodes())
            elif name == "nr_vmap_nodes":
                number = self._vmap_nodes[1]
            elif name == "vmap_zone_size":
                number = self._zone_size if self._vmap_nodes[1] else 0
            else:
                return None
            return drgn.Object(self._prog, "unsigned long", number) if number else None
        except _TROUBLE:
            return None

    def tell_direct_map(self) -> None:
        """Let drgn find out where the direct map is.

        drgn does so once, from the variable saved_command_line, which points into the direct map. So does the
        pointer that VMCOREINFO calls mem_section, which takes the place of that variable for this purpose.
        """
        from drgn.helpers.linux.mm import virt_to_phys

        prog, pointer = self._prog, self._symbols.get("mem_section", 0)
        if not pointer >> 63 or self._in_image(pointer):
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
            pass  # code that needs it will report the error
        finally:
            prog.set_enabled_object_finders(before)

    def _address(self, name: str) -> Optional[int]:
        root = ("swapper_pg_dir", "" if self._arch is None else self._arch.root_symbol)
        # One is a macro for the other, and VMCOREINFO has either.
        for said in root if name in root else (name,):
            # An address outside the image is the value of a variable, not its place (mem_section, vmemmap).
            if self._in_image(self._symbols.get(said, 0)):
                return self._symbols[said]
        way = self._ways.get(name)
        try:
            return None if way is None else way()
        except _TROUBLE:
            return None

    def _in_image(self, address: int) -> bool:
        return in_image(address, self._symbols)

    @property
    def _page_size(self) -> int:
        """Bytes of a page, which every VMCOREINFO has.

        :raises ValueError: it is missing or invalid.
        """
        size = int(self._lines.get("PAGESIZE", ""))
        if not 0 < size <= _MOST_PAGE_SIZE or size & size - 1:
            raise ValueError("PAGESIZE is none")
        return size

    @property
    def _zone_size(self) -> int:
        return _ZONE_PAGES * self._page_size

    def _length(self, name: str) -> int:
        """Elements of an array of pointers; 0 if it is not one."""
        said = re.search(rf"^LENGTH\({name}\)=(\d{{1,8}})$", self._vmcoreinfo, re.M)
        return min(int(said[1]), _MAX_NODES) if said else 0

    def _nodes(self) -> Iterator[drgn.Object]:
        """``struct pglist_data`` of each node."""
        try:
            yield self._prog["contig_page_data"]
        except KeyError:
            yield from (pointer[0] for pointer in self._prog["node_data"] if pointer)

    def _init_task(self) -> Optional[int]:
        """The first task: it is in the image, its list of tasks is intact there, and its UTS namespace is
        VMCOREINFO's init_uts_ns.
        """
        # Search by name first: if VMCOREINFO does not have the nodes, they are found through this task.
        for task in chain(self._swappers(), self._forefathers()):
            with contextlib.suppress(*_TROUBLE):
                ours = task.nsproxy.uts_ns.value_() == self._symbols.get("init_uts_ns")
                whole = task.tasks.next.prev.value_() == task.tasks.address_of_().value_()
                if ours and whole and self._in_image(task.value_()) and task.pid.value_() == 0:
                    return int(task.value_())
        return None

    def _forefathers(self) -> Iterator[drgn.Object]:
        """The topmost ancestors of the nodes' ``kswapd`` tasks. Such a task is its own parent."""
        with contextlib.suppress(*_TROUBLE):
            for node in self._nodes():
                task = node.kswapd.read_()
                for _ in range(_MAX_GENERATIONS):
                    if not task:
                        break
                    father = task.real_parent.read_()
                    if father == task:
                        yield task
                        break
                    task = father

    def _swappers(self) -> Iterator[drgn.Object]:
        """Candidates for the first task, by its name (init/init_task.c, kernel/sched/core.c:init_idle)."""
        pointer = self._prog.pointer_type(self._prog.type("struct task_struct"))
        at = drgn.offsetof(self._prog.type("struct task_struct"), "comm")
        left = _MAX_SWAPPERS
        for address, data in self._data(overlap=_MARK):
            for match in _SWAPPER.finditer(data):
                left -= 1
                if left < 0:
                    return
                yield drgn.Object(self._prog, pointer, address + match.start() - at)

    def _node_data(self) -> Optional[int]:
        """The array of nodes by number. The data of each node's ``kswapd`` thread points to the node.

        Without CONFIG_NUMA there is no such array, but there are pointers to the only node in many places.
        """
        import numpy

        type_ = self._prog.type("struct pglist_data")
        if "SYMBOL(contig_page_data)" in self._lines or not type_.has_member("min_unmapped_pages"):
            return None
        nodes = dict(self._nodes_of_kswapd())
        first = min(nodes, default=0)
        # MAX_ZONES_PER_ZONELIST is MAX_NUMNODES * MAX_NR_ZONES (include/linux/mmzone.h). One more ends the
        # list.
        zones = type_.member("node_zones").type.length
        zonelist = type_.member("node_zonelists").type.type
        length = min((zonelist.member("_zonerefs").type.length - 1) // zones, _MAX_NODES)
        for address, data in self._data() if nodes else ():
            words = numpy.frombuffer(data[: len(data) & -8], UINT64)
            for index in numpy.flatnonzero(words == nodes[first]).tolist():
                start = address + 8 * (index - first)
                with contextlib.suppress(*READ_ERRORS):
                    pointers = (self._prog.read_u64(start + 8 * n) for n in range(length))
                    if all(self._is_node(pointer, n, nodes) for n, pointer in enumerate(pointers)):
                        return int(start)
        return None

    def _is_node(self, pointer: int, number: int, known: Dict[int, int]) -> bool:
        """Whether ``node_data[number]`` may have this value. A node without memory has no ``kswapd``."""
        if number in known or not pointer:
            return pointer == known.get(number, 0)
        node = drgn.Object(self._prog, "struct pglist_data", address=pointer)
        return bool(node.node_id.value_() == number)

    def _nodes_of_kswapd(self) -> Iterator[Tuple[int, int]]:
        """(number, address) of nodes (mm/vmscan.c:kswapd_run)."""
        type_ = self._prog.type("struct task_struct")
        task = self._prog["init_task"].address_of_()
        head = link = task.tasks.address_of_()
        # e32cf5dfbe22 "kthread: Generalize pf_io_worker so it can point to struct kthread" (5.17)
        own = "worker_private" if type_.has_member("worker_private") else "set_child_tid"
        for _ in range(_MAX_TASKS):
            link = link.next.read_()
            if link == head:
                break
            task = drgn.container_of(link, type_, "tasks")
            if task.comm.string_().startswith(b"kswapd"):
                thread = drgn.cast("struct kthread *", task.member_(own))
                node = drgn.cast("struct pglist_data *", thread.data)
                if node.kswapd == task and 0 <= node.node_id.value_() < _MAX_NODES:
                    yield int(node.node_id), int(node)

    def _init_pid_ns(self) -> Optional[int]:
        """The first task's PID namespace, which has no parent."""
        task = self._prog["init_task"]
        namespace = task.nsproxy.pid_ns_for_children
        if self._in_image(namespace.value_()) and not namespace.parent and namespace.level.value_() == 0:
            return int(namespace.value_())
        return None

    def _init_stack(self) -> Optional[int]:
        stack = self._prog["init_task"].stack.value_()
        return int(stack) if self._in_image(stack) else None

    def _init_stack_end(self) -> Optional[int]:
        """All stacks have the same size, and those of other tasks are vmalloc areas (CONFIG_VMAP_STACK)."""
        start, link = self._init_stack(), self._prog["init_task"].tasks.next
        pages = drgn.container_of(link, self._prog.type("struct task_struct"), "tasks").stack_vm_area.nr_pages
        return None if start is None else start + int(pages.value_()) * self._page_size

    def _marked(self, pattern: bytes, at: int) -> Optional[int]:
        """Address of a variable, if its mark occurs exactly once in the image's data.

        :param at: offset of the mark in the variable.
        """
        mark = re.compile(pattern, re.DOTALL)
        found = {
            address + match.start() - at
            for address, data in self._data(overlap=_MARK)
            for match in mark.finditer(data)
        }
        return found.pop() if len(found) == 1 else None

    def _modules(self) -> Optional[int]:
        """The head of a list whose first entry is a module, which points back to the head and to itself.

        It is found only if a module is loaded, as all empty lists look alike.
        """
        import numpy

        type_ = self._prog.type("struct module")
        link, back = drgn.offsetof(type_, "list"), drgn.offsetof(type_, "mkobj.mod")
        read = self._prog.read_u64
        if self._arch is None:
            return None
        window = self._arch.address_space(self._lines).modules
        for address, data in self._data():
            words = numpy.frombuffer(data[: len(data) & -8], UINT64)
            for index in numpy.flatnonzero((words >= window.start) & (words <= window.end)).tolist():
                head, first = address + 8 * index, int(words[index])
                with contextlib.suppress(*_TROUBLE):
                    module = first - link
                    if read(first + 8) == head and read(module + back) == module:
                        return int(head)
        return None

    @cached_property
    def _vmap_nodes(self) -> Tuple[Optional[int], int]:
        """(address of the variable, number of nodes): a pointer to an array of nodes whose lists are intact.

        The address of each area gives its node (mm/vmalloc.c:addr_to_node_id). A machine with one CPU has one
        node, which is not searched for.
        """
        import numpy

        start, end = image_of(self._symbols)
        for address, data in self._data():
            words = numpy.frombuffer(data[: len(data) & -8], UINT64)
            # The array is too large for slabs of kmalloc(), so it has pages of its own.
            aligned = words & numpy.uint64(self._page_size - 1) == 0
            pointers = aligned & (words > 1 << 63) & (words - numpy.uint64(start) >= end - start)
            for index in numpy.flatnonzero(pointers).tolist():
                number = self._nodes_of_areas(int(words[index]))
                if number > 1:
                    return address + 8 * index, number
        return None, 0

    def _nodes_of_areas(self, start: int) -> int:
        """The number of ``struct vmap_node`` in an array; 0 if it is not such an array."""
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
        number, zone = len(starts), self._zone_size

        def fits(count: int) -> bool:
            return all(at // zone % count == of for of, found in enumerate(starts) for at in found)

        # If this were the beginning of a longer array, a multiple would fit as well.
        more = range(2 * number, _MAX_VMAP_NODES + 1, number or 1)
        return number if number and fits(number) and not any(map(fits, more)) else 0

    def _data(self, overlap: int = 0) -> Iterator[Tuple[int, bytes]]:
        """The image from VMCOREINFO's first variable on, including its bss."""
        variables = (address for name, address in self._symbols.items() if name != "_stext")
        start = min(filter(self._in_image, variables))
        yield from pieces(self._prog.read, start & -self._page_size, self._end(), overlap)

    def _end(self) -> int:
        """The end of the image, exclusive. Nothing is mapped after it, nor where it was freed within."""
        at = end = image_of(self._symbols)[1] & -_STEP
        while at < end + _MAX_FREED:
            at += _STEP
            with contextlib.suppress(*READ_ERRORS):
                self._prog.read_u8(at - 1)
                end = at
        return end

    def _node_states(self) -> Optional[int]:
        """``node_online_map`` is a macro for one element of it (include/linux/nodemask.h)."""
        online = int(self._prog.constant("N_ONLINE").value_())
        size = int(drgn.sizeof(self._prog.type("nodemask_t")))
        return self._symbols["node_online_map"] - online * size

    def _linux_banner(self) -> Optional[int]:
        """The text in the image with the release and the version in init_uts_ns.

        Ubuntu's text ends with Ubuntu's own version, in brackets. init/version.c has another text without the
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
