# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the symbol table in the kernel's own memory (kernel/kallsyms.c).

VMCOREINFO says where the tables are. They are fetched with a few large reads and then left compressed. A
look-up by name is the kernel's own binary search, one by address a bisection. Either expands only the names
that it visits.

drgn's load_vmlinux_kallsyms() reads each symbol's length byte separately, to find the end of the names
(kallsyms_copy_tables() in libdrgn/kallsyms.c), and then expands all of them. On an ELF core each such read
takes four system calls, three of them to walk the page tables; on a kdump, libkdumpfile caches the pages.
"""

from __future__ import annotations

import sys
from array import array
from typing import (
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

import drgn
from drgn import SymbolBinding, SymbolKind

from kvintro.errors import KvintroError
from kvintro.source.note import parse, symbols_of
from kvintro.source.privileges import open_kernel_file

__all__ = ("READ_ERRORS", "Kallsyms", "KallsymsError", "KallsymsSymbol", "vmcoreinfo_symbols")

_MAX_SYMBOLS = 1 << 20  # Debian's kernels have 150,000 to 250,000
_MAX_NAMES_SIZE = 64 << 20
_MAX_NAME = 1024  # KSYM_NAME_LEN is 512
_MAX_TOKEN = 256
_MAX_EXPANDED = 64 << 20  # bytes of all names together; Debian's kernels have 6 MB
_MAX_SUFFIXED = 1 << 14  # symbols with the same name, with or without a suffix (foo.llvm.123)
# The table has no sizes: a symbol extends to the next one. There are gaps between sections, and megabytes of
# strings without symbols in .rodata, so the size of a seemingly long symbol is unknown (drgn has the same
# limit). This does not apply to .data and .bss.
_MAX_SIZE = 64 << 10
_MAX_DATA_SIZE = 16 << 20
_DATA = (("_sdata", "_edata"), ("__bss_start", "__bss_stop"))
_MAX_ALIASES = 256  # at one address
_KERNEL_HALF = 1 << 63
_REMEDY = "name the vmlinux with -s"

READ_ERRORS = (drgn.FaultError, OSError, OverflowError, ValueError)
"""What drgn raises for memory that is not there, cannot be read or has no address."""

Reader = Callable[[int, int], bytes]
"""(address, size) -> memory; raises drgn.FaultError."""


class KallsymsError(KvintroError):
    """The symbol table cannot be found or is invalid."""


class KallsymsSymbol(NamedTuple):
    """One symbol. The type is nm(1)'s letter, upper case for a global symbol. A size of 0 means unknown."""

    name: str
    address: int
    size: int
    type: str

    def to_drgn(self) -> drgn.Symbol:
        """Convert it to a drgn symbol; kind and binding as in libdrgn/kallsyms.c:symbol_from_kallsyms()."""
        letter = self.type.lower()
        if self.type == "u":
            binding = SymbolBinding.UNIQUE
        elif letter in "vw":
            binding = SymbolBinding.WEAK
        else:
            binding = SymbolBinding.GLOBAL if self.type.isupper() else SymbolBinding.UNKNOWN
        kind = SymbolKind.UNKNOWN
        if letter in "bcdgrv":
            kind = SymbolKind.OBJECT
        elif letter == "t":
            kind = SymbolKind.FUNC
        return drgn.Symbol(self.name, self.address, self.size, binding, kind)


def vmcoreinfo_symbols(vmcoreinfo: str) -> Dict[str, int]:
    """The SYMBOL(name)=address lines of a VMCOREINFO note."""
    return symbols_of(parse(vmcoreinfo))


class _Table(Protocol):
    """Symbols in ascending order of address."""

    def __len__(self) -> int: ...

    @property
    def address(self) -> Callable[[int], int]: ...

    def name(self, index: int) -> Tuple[str, str]:
        """(type, name)."""

    def find(self, name: str) -> Sequence[int]:
        """Indices of all symbols with a name, ascending."""


class Kallsyms:
    """The symbols of a kernel image.

    Make one with :meth:`from_memory` or :meth:`from_proc`.
    """

    def __init__(self, table: _Table, origin: str) -> None:
        self._table = table
        self.origin = origin
        """Where the symbols came from, for people."""
        self._data: Optional[List[Tuple[int, int]]] = None

    @classmethod
    def from_memory(cls, read: Reader, symbols: Mapping[str, int], origin: str = "kallsyms") -> Kallsyms:
        """Read the table from the kernel's memory.

        :param read: reads virtual memory.
        :param symbols: addresses of kallsyms_names, the other tables and _stext, by name.
        :param origin: where the table came from, for display.
        :raises KallsymsError: an address is missing, or there is no valid symbol table at the addresses.
        """
        for name in _MemoryTable.NEEDS:
            if not symbols.get(name) and not (name == "kallsyms_offsets" and "kallsyms_addresses" in symbols):
                raise KallsymsError(f"VMCOREINFO has no {name}, as before Linux 6.0", _REMEDY)
        try:
            return cls(_MemoryTable(read, symbols), origin)
        except READ_ERRORS as e:
            raise KallsymsError(f"the kernel's symbol table is not in the source: {e}", _REMEDY) from e

    @classmethod
    def from_proc(cls, path: str = "/proc/kallsyms") -> Kallsyms:
        """Read the running kernel's own list.

        :raises KallsymsError: it is not there, or shows no addresses.
        """
        try:
            with open_kernel_file(path) as file:
                table = _TextTable(file)
        except OSError as e:
            raise KallsymsError(f"cannot read {path}: {e.strerror}", _REMEDY) from e
        if not len(table):
            raise KallsymsError(f"{path} is empty", _REMEDY)
        if not any(table.addresses):
            raise KallsymsError(
                f"{path} shows no addresses (kptr_restrict)", "as root: sysctl kernel.kptr_restrict=1"
            )
        return cls(table, path)

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[KallsymsSymbol]:
        return (self._symbol(index) for index in range(len(self._table)))

    @property
    def code_only(self) -> bool:
        """Whether the table has no variables (CONFIG_KALLSYMS_ALL is off)."""
        # Every kernel has this variable. It is in .data, which only KALLSYMS_ALL includes.
        return self.lookup("init_uts_ns") is None

    def lookup(self, name: str) -> Optional[int]:
        """Address of the symbol with a name, the first global one if there are several; None if none."""
        symbol = self.lookup_symbol(name)
        return None if symbol is None else symbol.address

    def lookup_symbol(self, name: str) -> Optional[KallsymsSymbol]:
        """As :meth:`lookup`, with size and type."""
        return next(iter(self.lookup_all(name)), None)

    def lookup_all(self, name: str) -> List[KallsymsSymbol]:
        """All symbols with a name: global ones first, otherwise in ascending order."""
        symbols = [self._symbol(index) for index in self._table.find(name)]
        return sorted(symbols, key=lambda symbol: symbol.type.islower())

    def by_address(self, address: int) -> Optional[KallsymsSymbol]:
        """The symbol that an address belongs to; None if it belongs to none.

        If several have the same address, it is the first global one, as in drgn with an ELF symbol table.
        Addresses in the lower half belong to none: before 6.15, per-CPU symbols are offsets from 0, but NULL
        is not a per-CPU variable.
        """
        if address < _KERNEL_HALF:
            return None
        last = self._bisect(address + 1) - 1
        if last < 0:
            return None
        first = max(min(self._bisect(self._table.address(last)), last), last - _MAX_ALIASES)
        aliases = range(first, last + 1)
        symbol = self._symbol(min(aliases, key=lambda index: self._table.name(index)[0].islower()))
        if symbol.address <= address < symbol.address + max(symbol.size, 1):
            return symbol
        return None

    def find(
        self, prog: drgn.Program, name: Optional[str], address: Optional[int], one: bool
    ) -> List[drgn.Symbol]:
        """Symbol finder for :meth:`drgn.Program.register_symbol_finder`."""
        if name is not None:
            symbols = self.lookup_all(name)
            if address is not None:
                symbols = [s for s in symbols if s.address <= address < s.address + max(s.size, 1)]
            if one:
                del symbols[1:]
        elif address is not None:
            symbol = self.by_address(address)
            if symbol is None:
                return []
            symbols = [symbol]
            if not one:
                index = self._bisect(symbol.address)
                symbols = [self._symbol(i) for i in range(index, self._bisect(symbol.address + 1))]
        else:
            symbols = list(self)[: 1 if one else None]
        return [symbol.to_drgn() for symbol in symbols]

    def _bisect(self, address: int) -> int:
        """Number of symbols below an address."""
        low, high = 0, len(self._table)
        while low < high:
            middle = (low + high) // 2
            if self._table.address(middle) < address:
                low = middle + 1
            else:
                high = middle
        return low

    def _in_data(self, start: int, size: int) -> bool:
        """Whether a range is in sections without gaps, where all data has symbols."""
        if self._data is None:
            self._data = []  # for the look-ups that follow
            bounds = [(self.lookup(first), self.lookup(last)) for first, last in _DATA]
            self._data = [(first, last) for first, last in bounds if first is not None and last is not None]
        return size <= _MAX_DATA_SIZE and any(
            first <= start and start + size <= last for first, last in self._data
        )

    def _symbol(self, index: int) -> KallsymsSymbol:
        address = self._table.address(index)
        size = 0
        for following in range(index + 1, min(index + _MAX_ALIASES, len(self._table))):
            size = self._table.address(following) - address
            if size:
                break
        letter, name = self._table.name(index)
        if size < 0 or (size > _MAX_SIZE and not self._in_data(address, size)):
            size = 0
        return KallsymsSymbol(name, address, size, letter)


class _Names:
    """Indices by name, for kernels without a table sorted by name. Few names occur more than once.

    :raises KallsymsError: the names are longer in total than those of any kernel.
    """

    def __init__(self, names: Iterable[bytes]) -> None:
        first: Dict[bytes, int] = {}
        more: Dict[bytes, List[int]] = {}
        size = 0
        for index, name in enumerate(names):
            size += len(name)
            if size > _MAX_EXPANDED:
                raise KallsymsError(f"the symbols' names have more than {_MAX_EXPANDED >> 20} MB")
            if name in first:
                more.setdefault(name, []).append(index)
            else:
                first[name] = index
        self._first, self._more = first, more

    def find(self, name: str) -> Sequence[int]:
        key = name.encode("ascii", "backslashreplace")
        if key not in self._first:
            return ()
        return (self._first[key], *self._more.get(key, ()))


class _MemoryTable:
    """The kernel's compressed tables, as written by scripts/kallsyms.c."""

    NEEDS = (
        "kallsyms_num_syms",
        "kallsyms_names",
        "kallsyms_token_table",
        "kallsyms_token_index",
        "kallsyms_offsets",
        "_stext",
    )

    def __init__(self, read: Reader, symbols: Mapping[str, int]) -> None:
        self._count = int.from_bytes(read(symbols["kallsyms_num_syms"], 4), "little")
        if not 0 < self._count <= _MAX_SYMBOLS:
            raise KallsymsError(f"kallsyms_num_syms is {self._count}, which is invalid")
        self._tokens = self._read_tokens(read, symbols)
        self._names, self._starts, self._names_size = self._read_names(read, symbols)
        self._indices: Optional[_Names] = None
        self._sequence: Optional[bytes] = None
        if "kallsyms_addresses" in symbols:  # without CONFIG_KALLSYMS_BASE_RELATIVE, so without a sequence
            self.address = self._addresses(read, symbols)
            return
        self._offsets = self._words(read(symbols["kallsyms_offsets"], 4 * self._count))
        self._sequence = self._read_sequence(read, symbols)
        self.address = self._address_function(read, symbols)

    def __len__(self) -> int:
        return self._count

    @staticmethod
    def _words(data: bytes) -> memoryview:
        if sys.byteorder != "little":
            swapped = array("i", data)
            swapped.byteswap()
            data = swapped.tobytes()
        return memoryview(data).cast("i")

    @staticmethod
    def _read_tokens(read: Reader, symbols: Mapping[str, int]) -> List[bytes]:
        """The text of each token: token_index[byte] is the offset in token_table of the text of a byte."""
        index = read(symbols["kallsyms_token_index"], 512)
        starts = [index[i] | index[i + 1] << 8 for i in range(0, 512, 2)]
        # The index directly follows the table, so the last token ends just before it.
        size = symbols["kallsyms_token_index"] - symbols["kallsyms_token_table"]
        if not max(starts) < size <= 1 << 17:
            raise KallsymsError("kallsyms_token_table is not before kallsyms_token_index")
        table = read(symbols["kallsyms_token_table"], size)
        return [table[start : start + _MAX_TOKEN].split(b"\0", 1)[0] for start in starts]

    def _read_names(self, read: Reader, symbols: Mapping[str, int]) -> Tuple[bytes, array[int], int]:
        """Return the names, the start of each, and their total size.

        A name is the number of its tokens, then the tokens. Only its content says how long the table is. It
        is read up to the next table that VMCOREINFO has, which includes little else (kallsyms_markers, and on
        6.2 and 6.3 the sequence).
        """
        start = symbols["kallsyms_names"]
        others = [a for name, a in symbols.items() if name.startswith("kallsyms_") and a > start]
        size = min(others, default=start) - start
        if not 0 < size <= _MAX_NAMES_SIZE:
            raise KallsymsError("kallsyms_names is not followed by the other tables")
        names = read(start, size)
        starts = array("I")
        append = starts.append
        position = 0
        try:
            for _ in range(self._count):
                append(position)
                length = names[position]
                if length & 0x80:  # 6.1: two bytes for long names. Before, no name had that many tokens
                    position += 1
                    length = length & 0x7F | names[position] << 7
                position += length + 1
        except IndexError:
            position = size + 1
        if position > size:
            raise KallsymsError("kallsyms_names overlaps the next table")
        return names, starts, position

    def _read_sequence(self, read: Reader, symbols: Mapping[str, int]) -> Optional[bytes]:
        """kallsyms_seqs_of_names (6.2): the indices of all symbols in the order of their names, 3 bytes each.

        VMCOREINFO does not have its address, but it follows a table at a known address:
        kallsyms_relative_base, kallsyms_offsets if there is no such base (7.0), or kallsyms_markers (6.2 and
        6.3). The data there is accepted if it yields names in ascending order.
        """
        ends = [symbols["kallsyms_offsets"] + 4 * self._count]
        if symbols.get("kallsyms_relative_base"):
            ends.insert(0, symbols["kallsyms_relative_base"] + 8)
        markers = symbols["kallsyms_names"] + self._names_size + 7 & -8
        ends.append(markers + 4 * ((self._count + 255) // 256))
        for place in (end + align - 1 & -align for end in ends for align in (4, 8)):
            try:
                sequence = read(place, 3 * self._count)
            except READ_ERRORS:
                continue
            step = max(self._count // 64, 1)
            try:
                sample = [self._name(self._big24(sequence, i))[1:] for i in range(0, self._count, step)]
            except (IndexError, KallsymsError):
                continue
            if all(a <= b for a, b in zip(sample, sample[1:])) and sample[0] < sample[-1]:
                return sequence
        return None

    @staticmethod
    def _big24(data: bytes, index: int) -> int:
        return data[3 * index] << 16 | data[3 * index + 1] << 8 | data[3 * index + 2]

    def _addresses(self, read: Reader, symbols: Mapping[str, int]) -> Callable[[int], int]:
        addresses = array("Q", read(symbols["kallsyms_addresses"], 8 * self._count))
        if sys.byteorder != "little":
            addresses.byteswap()
        if symbols["_stext"] not in (addresses[index] for index in self.find("_stext")):
            raise KallsymsError("kallsyms_addresses has a wrong address for _stext")
        return addresses.__getitem__

    def _address_function(self, read: Reader, symbols: Mapping[str, int]) -> Callable[[int], int]:
        """A function from index to address, for the encoding that gives the right address of _stext.

        Before 6.15 a positive offset is an absolute address (of a per-CPU symbol) and a negative one is
        relative to kallsyms_relative_base (CONFIG_KALLSYMS_ABSOLUTE_PERCPU). Since 6.15 all are relative to
        it. Since 7.0 each is relative to its own address (a081b5789255 "kallsyms: Get rid of kallsyms
        relative base").
        """
        offsets = self._offsets
        mask = (1 << 64) - 1
        place = symbols["kallsyms_offsets"]
        base = 0
        if symbols.get("kallsyms_relative_base"):
            base = int.from_bytes(read(symbols["kallsyms_relative_base"], 8), "little")

        def absolute_percpu(index: int) -> int:
            offset = offsets[index]
            return offset if offset >= 0 else base - 1 - offset & mask

        def relative(index: int) -> int:
            return base + (offsets[index] & 0xFFFFFFFF) & mask

        def place_relative(index: int) -> int:
            return place + 4 * index + offsets[index] & mask

        for index in self.find("_stext"):
            for function in (absolute_percpu, relative) if base else (place_relative,):
                if function(index) == symbols["_stext"]:
                    return function
        raise KallsymsError(
            "kallsyms_offsets has an unknown format: no known format gives the address of _stext"
        )

    def _name(self, index: int) -> bytes:
        """Type and name as one string, as they are stored (kallsyms_expand_symbol())."""
        start = self._starts[index]
        length = self._names[start]
        start += 1
        if length & 0x80:
            length = length & 0x7F | self._names[start] << 7
            start += 1
        if length <= _MAX_NAME:  # a token is at least a byte
            name = b"".join([self._tokens[token] for token in self._names[start : start + length]])
            if len(name) <= _MAX_NAME:
                return name
        raise KallsymsError("kallsyms_names has a name that is too long")

    def name(self, index: int) -> Tuple[str, str]:
        text = self._name(index).decode("ascii", "backslashreplace")
        return text[:1], text[1:]

    def find(self, name: str) -> Sequence[int]:
        if self._sequence is None:
            if self._indices is None:
                self._indices = _Names(self._name(index)[1:] for index in range(self._count))
            return self._indices.find(name)
        # As kallsyms_lookup_names(), but with a margin: some kernels sort names without their .llvm suffix.
        sequence, count = self._sequence, self._count
        wanted = name.encode("ascii", "backslashreplace")
        if not wanted:
            return ()
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if self._sorted_name(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        found = []
        for place in range(low, min(count, low + _MAX_SUFFIXED)):
            candidate = self._sorted_name(place)
            if candidate == wanted:
                found.append(self._big24(sequence, place))
            elif not candidate.startswith(wanted + b"."):
                break
        return sorted(found)

    def _sorted_name(self, position: int) -> bytes:
        assert self._sequence is not None
        index = self._big24(self._sequence, position)
        return self._name(index)[1:] if index < self._count else b""


class _TextTable:
    """/proc/kallsyms up to the first symbol of a module."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self.addresses = array("Q")
        self._names: List[bytes] = []
        self._indices: Optional[_Names] = None
        for line in lines:
            fields = line.split()
            if len(fields) != 3 or len(self._names) >= _MAX_SYMBOLS:
                break
            try:
                self.addresses.append(int(fields[0], 16))
            except (ValueError, OverflowError):
                break
            self._names.append(fields[1][:1] + fields[2][:_MAX_NAME])

    def __len__(self) -> int:
        return len(self._names)

    def address(self, index: int) -> int:
        return self.addresses[index]

    def name(self, index: int) -> Tuple[str, str]:
        text = self._names[index].decode("ascii", "backslashreplace")
        return text[:1], text[1:]

    def find(self, name: str) -> Sequence[int]:
        if self._indices is None:
            self._indices = _Names(text[1:] for text in self._names)
        return self._indices.find(name)
