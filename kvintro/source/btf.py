# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads BTF, the type information in the kernel's own memory, for drgn.

:class:`Btf` parses one blob and does not use drgn. :class:`BtfTypes` makes :class:`drgn.Type` objects from
it, each on first use. Format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h.

A blob comes from a dump and is not trusted: whatever it contains, reading it ends in bounded time and memory
with a type or with :class:`BtfError`.

drgn is getting its own reader (``Module.load_btf()``), which will make this file unnecessary.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from array import array
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Literal,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

import drgn
from drgn import Qualifiers, TypeEnumerator, TypeKind, TypeMember, TypeParameter

from kvintro.errors import KvintroError
from kvintro.source._variable_table import SHAPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[Any]

__all__ = ("MAX_BTF_SIZE", "Btf", "BtfError", "BtfTypes", "Member")

MAX_BTF_SIZE = 64 << 20
"""A bigger blob is refused; the biggest known (an allyesconfig kernel's) has under 20 MB."""
_MAX_STRINGS = 16 << 20  # Debian's kernels have 2 MB of them
_MAX_NESTING = 64  # pointers to arrays of typedefs of ...: C code reaches about 8
_MAX_NAME = 1024  # KSYM_NAME_LEN is 512
_MAX_MEMBERS = 1 << 16  # of one type; BTF_MAX_VLEN until the field was widened
_MAX_STRUCT_SIZE = 1 << 28
_MAX_DUPLICATES = 64  # of one name; real kernels have up to four
_MAX_CANDIDATES = 4096  # unnamed structures with the same number of members; real kernels have some hundred
# A C identifier, or the words of an integer's name. Compilers add dots (foo.isra.0) and allow dollars, as
# __btf_name_char_ok() of kernel/bpf/btf.c does in part.
_IDENTIFIER = re.compile(r"[A-Za-z_.$][\w.$]*(?: [A-Za-z_][\w]*)*", re.ASCII)

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(11, 20)

# 32-bit words of a type: the fixed ones (name, info, size or type, and more), and those per element (vlen).
_FIXED_WORDS = dict.fromkeys(range(1, 20), 3)
_FIXED_WORDS.update({INT: 4, ARRAY: 6, VAR: 4, DECL_TAG: 4})
_ELEMENT_WORDS = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
# A function has its linkage where other types have the number of elements; the remaining kinds have 0 there.
_MAX_LINKAGE = 2
_QUALIFIERS = {
    CONST: Qualifiers.CONST,
    VOLATILE: Qualifiers.VOLATILE,
    RESTRICT: Qualifiers.RESTRICT,
}
_TRANSPARENT = frozenset((TYPEDEF, CONST, VOLATILE, RESTRICT, TYPE_TAG))

_INT_SIGNED, _INT_BOOL = 1, 4
_BYTE_ORDER: Literal["little"] = "little"


class BtfError(KvintroError):
    """A BTF blob, or one type in it, is invalid."""

    def __init__(self, what: str, remedy: str = "give types of the same build with --btf FILE or -s VMLINUX"):
        super().__init__(what, remedy)


class _Steps(Dict[int, int]):
    """Maps an info word to the number of words of the whole type.

    The 100,000 types of a kernel have some 2,000 different info words, so nearly every look-up is a hit.
    """

    def __missing__(self, info: int) -> int:
        kind = info >> 24 & 0x7F
        step = _FIXED_WORDS.get(kind, 0)
        if not step:
            raise BtfError(
                f"BTF type of unknown kind {kind}",
                "this kernel's BTF is newer than kvintro, or damaged",
            )
        count = info & 0xFFFFFF
        if count > (_MAX_LINKAGE if kind == FUNC else 0) and kind not in _ELEMENT_WORDS:
            # As in btf_check_meta(). Otherwise there could be as many info words as types.
            raise BtfError(f"BTF type of kind {kind} has {count} elements", "this kernel's BTF is damaged")
        step += _ELEMENT_WORDS.get(kind, 0) * count
        self[info] = step
        return step


class Member(NamedTuple):
    """A member of a structure or union, as encoded in BTF."""

    name: Optional[str]
    type_id: int
    bit_offset: int
    bit_field_size: int  # 0: not a bit-field


class _Places:
    """An index of an array: the positions of each value."""

    def __init__(self, values: Numbers) -> None:
        import numpy

        self._order = numpy.argsort(values, kind="stable")
        self._values = values[self._order]

    def of(self, value: int) -> Numbers:
        """The indices of a value, ascending."""
        first, behind = self._values.searchsorted((value, value + 1))
        found: Numbers = self._order[first:behind]
        return found


class Btf:
    """One BTF blob.

    :param data: the blob.
    :param base: the blob that this one continues (a module's BTF continues vmlinux's).
    :param name: the module, or ``vmlinux``, for messages.
    :raises BtfError: it is not BTF, or its tables are inconsistent.
    """

    def __init__(
        self,
        data: Union[bytes, memoryview],
        base: Optional[Btf] = None,
        *,
        name: str = "vmlinux",
    ) -> None:
        self.name = name
        self.base = base
        self.first_id: int = base.end_id if base else 1
        self._first_string: int = base.end_string if base else 0
        if len(data) > MAX_BTF_SIZE:
            raise BtfError(f"BTF of {name}: {len(data)} bytes are too many")
        types, self._strings = self._sections(bytes(data))
        self.end_string: int = self._first_string + len(self._strings)
        if sys.byteorder == "big":
            swapped = array("I", types)
            swapped.byteswap()
            types = swapped.tobytes()
        self._types = types
        self._words = memoryview(types).cast("I")
        self._starts = self._index()
        self.end_id: int = self.first_id + len(self._starts)
        self._spreads: Dict[int, int] = {}
        self._spellings: Dict[int, int] = {}
        # All modules' blobs look up the same name in the kernel's blob.
        self._last_string: Tuple[str, List[int]] = ("", [])

    def _sections(self, data: bytes) -> Tuple[bytes, bytes]:
        """The section of types and that of strings (btf_parse_hdr() of kernel/bpf/btf.c)."""
        if len(data) < 24:
            raise BtfError(f"BTF of {self.name}: {len(data)} bytes are too few for a header")
        magic, version, _, header_size = struct.unpack_from("<HBBI", data)
        if magic != 0xEB9F:
            raise BtfError(f"BTF of {self.name}: wrong magic number {magic:#x}")
        if version != 1:
            raise BtfError(f"BTF of {self.name}: unknown version {version}")
        type_start, type_size, string_start, string_size = struct.unpack_from("<4I", data, 8)
        body = len(data) - header_size
        if (
            header_size < 24
            or type_start % 4
            or type_size % 4
            or type_start + type_size > body
            or string_start + string_size > body
        ):
            raise BtfError(f"BTF of {self.name}: its sections are outside the data (truncated?)")
        types = data[header_size + type_start : header_size + type_start + type_size]
        strings = data[header_size + string_start : header_size + string_start + string_size]
        if string_size > _MAX_STRINGS:
            raise BtfError(f"BTF of {self.name}: {string_size} bytes of names are too many")
        # Offset 0 is the empty string, but a module's strings continue the kernel's, and it may have none.
        if not (strings.endswith(b"\0") or (self.base and not strings)) or (not self.base and strings[0]):
            raise BtfError(f"BTF of {self.name}: the strings do not begin and end with a zero byte")
        return types, strings

    def _index(self) -> array[int]:
        """The word at which each type starts."""
        words = self._words
        starts = array("I")
        append = starts.append
        steps = _Steps()
        position, end = 0, len(words)
        try:
            while position < end:
                append(position)
                position += steps[words[position + 1]]
        except IndexError:
            position = end + 1
        if position != end:
            raise BtfError(f"BTF of {self.name}: the last type is cut off")
        return starts

    # Look-ups use arrays of all types. They are no slower for a malicious blob than for another of its size;
    # Python loops over its types would take a minute.

    @cached_property
    def _all_words(self) -> Numbers:
        import numpy

        return numpy.frombuffer(self._types, numpy.uint32)

    @cached_property
    def _all_starts(self) -> Numbers:
        import numpy

        return numpy.frombuffer(self._starts, numpy.uint32)

    @cached_property
    def _infos(self) -> Numbers:
        """The info word of each type: kind, number of elements and kind flag, as stored."""
        infos: Numbers = self._all_words[self._all_starts + 1]
        return infos

    @cached_property
    def _kinds(self) -> Numbers:
        import numpy

        return (self._infos >> 24 & 0x7F).astype(numpy.uint8)

    @cached_property
    def _names(self) -> _Places:
        """The types that have each name, by the name's offset."""
        return _Places(self._all_words[self._all_starts])

    @cached_property
    def _enumerators(self) -> Tuple[Numbers, _Places]:
        """The words with the names of enumerators, in the order of their types, and an index of the names."""
        import numpy

        words = numpy.sort(numpy.concatenate([self._elements(ENUM), self._elements(ENUM64)]))
        return words, _Places(self._all_words[words])

    def _elements(self, kind: int) -> Numbers:
        """The first words of all elements (members, parameters, enumerators) of all types of a kind."""
        import numpy

        of_kind = numpy.flatnonzero(self._kinds == kind)
        counts = (self._infos[of_kind] & 0xFFFFFF).astype(numpy.int64)
        # Each type's elements follow its three fixed words.
        firsts = self._all_starts[of_kind] + 3 - (numpy.cumsum(counts) - counts) * _ELEMENT_WORDS[kind]
        within = numpy.arange(int(counts.sum())) * _ELEMENT_WORDS[kind]
        return (numpy.repeat(firsts, counts) + within).astype(numpy.uint32)

    @cached_property
    def _references(self) -> Numbers:
        """For each type of this blob, how many members, parameters, pointers and the like refer to it."""
        import numpy

        words, starts, kinds = self._all_words, self._all_starts, self._kinds
        no_target = (INT, ARRAY, STRUCT, UNION, ENUM, FLOAT, DATASEC, ENUM64)
        targets = [words[self._elements(kind) + 1] for kind in (STRUCT, UNION, FUNC_PROTO)]
        targets.append(words[starts[~numpy.isin(kinds, no_target)] + 2])
        targets.append(words[starts[kinds == ARRAY] + 3])
        ids = numpy.concatenate(targets)
        ids = ids[(ids >= self.first_id) & (ids < self.end_id)] - self.first_id
        return numpy.bincount(ids, minlength=len(starts))

    # -- raw access, ids in, plain values out

    def __len__(self) -> int:
        return len(self._starts)

    def _owner(self, type_id: int) -> Tuple[Btf, int]:
        """The blob that contains a type, and the word at which the type starts there."""
        btf: Optional[Btf] = self
        while btf is not None:
            if btf.first_id <= type_id < btf.end_id:
                return btf, btf._starts[type_id - btf.first_id]
            btf = btf.base
        raise BtfError(f"BTF of {self.name}: there is no type {type_id}")

    def kind(self, type_id: int) -> int:
        """Kind of a type; 0 is void."""
        if not type_id:
            return 0
        btf, position = self._owner(type_id)
        return btf._words[position + 1] >> 24 & 0x7F

    def record(self, type_id: int) -> Tuple[int, int, int, int, bool]:
        """(kind, name offset, size or type, vlen, kind flag) of a type."""
        btf, position = self._owner(type_id)
        name, info, size = btf._words[position : position + 3]
        return info >> 24 & 0x7F, name, size, info & 0xFFFFFF, bool(info >> 31)

    def _tail(self, type_id: int) -> memoryview:
        """The words after a type's first three."""
        btf, position = self._owner(type_id)
        index = type_id - btf.first_id + 1
        end = btf._starts[index] if index < len(btf._starts) else len(btf._words)
        return btf._words[position + 3 : end]

    def string(self, offset: int) -> Optional[str]:
        """The string at an offset; None if it is empty.

        :raises BtfError: the offset is out of range, or the string is too long or not a valid name.
        """
        btf = self
        while offset < btf._first_string and btf.base is not None:
            btf = btf.base
        start = offset - btf._first_string
        end = btf._strings.find(b"\0", start, start + _MAX_NAME) if start >= 0 else -1
        if end < 0:
            raise BtfError(f"BTF of {self.name}: there is no string at {offset}")
        text = btf._strings[start:end].decode("ascii", "backslashreplace")
        if not text:
            return None
        if not _IDENTIFIER.fullmatch(text):
            raise BtfError(f"BTF of {self.name}: the string at {offset} is not a name")
        return text

    def name_of(self, type_id: int) -> Optional[str]:
        """Name of a type; None if it has none."""
        return self.string(self.record(type_id)[1])

    def _string_offsets(self, name: str) -> List[int]:
        """Offsets of a whole string, here and in the base. Known blobs have each string at most once."""
        if self._last_string[0] == name:
            return self._last_string[1]
        found = []
        raw = name.encode("ascii", "backslashreplace") + b"\0"
        if 1 < len(raw) <= _MAX_NAME:
            # A string at the very start of a module's section has no terminator before it.
            if self._first_string and self._strings.startswith(raw):
                found.append(self._first_string)
            position = self._strings.find(b"\0" + raw)
            while position >= 0 and len(found) < _MAX_DUPLICATES:
                found.append(self._first_string + position + 1)
                position = self._strings.find(b"\0" + raw, position + 1)
        if self.base:
            found += self.base._string_offsets(name)
        self._last_string = (name, found)
        return found

    # -- look-up by name, in this blob only

    def find(self, kind: int, name: str) -> List[int]:
        """Ids of the types of this kind and name in this blob, the most referenced first.

        More than one means that translation units disagree about the type, or that there really are two of
        that name. The one that most other types use is most likely the right one. At most the first 64 are
        considered.
        """
        found: List[int] = []
        for offset in self._string_offsets(name):
            same_name = self._names.of(offset)
            of_kind = same_name[self._kinds[same_name] == kind]
            found += [int(index) + self.first_id for index in of_kind[: _MAX_DUPLICATES - len(found)]]
        if len(found) > 1:
            found.sort(key=lambda type_id: -self._references[type_id - self.first_id])
        return found

    def anonymous(self, kind: int, count: int) -> Iterator[int]:
        """Ids of the unnamed types of a kind with this many elements; at most the first 4096."""
        nameless = self._names.of(0)
        nameless = nameless[(self._kinds[nameless] == kind) & (self._infos[nameless] & 0xFFFFFF == count)]
        return (int(index) + self.first_id for index in nameless[:_MAX_CANDIDATES])

    def names(self, kind: int) -> Iterator[str]:
        """Names of all named types of a kind, each once."""
        starts = self._all_starts[self._kinds == kind]
        for offset in dict.fromkeys(self._all_words[starts].tolist()):
            name = self.string(offset)
            if name:
                yield name

    def find_enumerator(self, name: str) -> Optional[Tuple[int, int]]:
        """(id of the enumeration, value) of an enumerator in this blob; None if there is none."""
        words, places = self._enumerators
        for offset in self._string_offsets(name):
            found = places.of(offset)
            if len(found):
                index = int(self._all_starts.searchsorted(words[found[0]], side="right")) - 1
                type_id = index + self.first_id
                return type_id, dict(self.enumerators(type_id))[offset]
        return None

    # -- the parts of a type

    def size_of(self, type_id: int) -> Optional[int]:
        """Size in bytes; None if it has none (void, functions, incomplete types).

        :raises BtfError: too deep a chain of types.
        """
        count = 1
        for _ in range(_MAX_NESTING):
            if not type_id:
                return None
            kind, _, size, _, _ = self.record(type_id)
            if kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT, DATASEC):
                return count * size
            if kind == PTR:
                return count * 8
            if kind == ARRAY:
                type_id, _, elements = self._tail(type_id)
                count *= elements
            elif kind in _TRANSPARENT or kind == VAR:
                type_id = size
            else:
                return None
        raise BtfError(f"BTF of {self.name}: type {type_id} refers to itself")

    def is_empty_array(self, type_id: int) -> bool:
        """Whether a type is ``T[]`` or ``T[0]``, const and the like aside."""
        for _ in range(_MAX_NESTING):
            kind, _, target, _, _ = self.record(type_id)
            if kind == ARRAY:
                return not self._tail(type_id)[2]
            if kind not in _QUALIFIERS or not target:
                break
            type_id = target
        return False

    def members(self, type_id: int) -> List[Member]:
        """Members of a structure or union, with bit-fields in either encoding.

        :raises BtfError: a member is outside the type, or the type contains itself.
        """
        _, _, size, vlen, flag = self.record(type_id)
        if vlen > _MAX_MEMBERS or size > _MAX_STRUCT_SIZE:
            raise BtfError(f"BTF of {self.name}: type {type_id} is too large")
        self._spread(type_id)
        tail = self._tail(type_id)
        result = []
        of_its_size = []
        for index in range(0, 3 * vlen, 3):
            name, member_id, offset = tail[index : index + 3]
            bits = 0
            if flag:
                bits = offset >> 24
                offset &= 0xFFFFFF
            elif self.kind(member_id) == INT:
                # Before the kind flag, a bit-field was a member of an odd integer type.
                encoding = self._tail(member_id)[0]
                if encoding & 0xFF != 8 * self.record(member_id)[2]:
                    bits = encoding & 0xFF
                    offset += encoding >> 16 & 0xFF
            member_size = self.size_of(member_id)
            if member_size is None or bits > 8 * member_size or offset + (bits or 8 * member_size) > 8 * size:
                raise BtfError(f"BTF of {self.name}: a member of type {type_id} is outside the type")
            if member_size == size:
                of_its_size.append(member_id)
            text = self.string(name)
            if text is None and name:
                raise BtfError(f"BTF of {self.name}: a member of type {type_id} has an empty name")
            result.append(Member(text, member_id, offset, bits))
        if self._contains(of_its_size, type_id):
            raise BtfError(f"BTF of {self.name}: type {type_id} contains itself")
        return result

    def _spread(self, type_id: int, depth: int = 0) -> int:
        """Number of members that can be accessed in a type: its own, and those of its unnamed members.

        drgn searches all of them for a member that does not exist. Eight levels of unnamed unions with eight
        members each would keep it busy forever.
        """
        if type_id in self._spreads:
            return self._spreads[type_id]
        _, _, _, count, _ = self.record(type_id)
        if depth > _MAX_NESTING or count > _MAX_MEMBERS:
            raise BtfError(f"BTF of {self.name}: type {type_id} has too many members")
        tail = self._tail(type_id)
        for index in range(0, 3 * count, 3):
            if not tail[index]:
                inner = self._strip(tail[index + 1])
                if self.kind(inner) in (STRUCT, UNION):
                    count += self._spread(inner, depth + 1)
                    if count > _MAX_MEMBERS:
                        raise BtfError(f"BTF of {self.name}: type {type_id} has too many members")
        self._spreads[type_id] = count
        return count

    def _strip(self, type_id: int) -> int:
        """A type without typedefs, qualifiers and tags."""
        for _ in range(_MAX_NESTING):
            if self.kind(type_id) not in _TRANSPARENT:
                return type_id
            type_id = self.record(type_id)[2]
        raise BtfError(f"BTF of {self.name}: type {type_id} refers to itself")

    def _contains(self, outer: Sequence[int], inner: int) -> bool:
        """Whether a type is contained by value, at any depth, in one of some types of the same size.

        A type can contain itself only through members of its own size, as no member may be larger than the
        whole.

        :raises BtfError: more members would have to be checked than any type has.
        """
        size = self.size_of(inner)
        todo = list(outer)
        seen: Set[int] = set()
        looked_at = 0
        while todo:
            type_id = self._strip(todo.pop())
            while self.kind(type_id) == ARRAY:  # this ends, as size_of() has checked
                type_id = self._strip(self._tail(type_id)[0])
            kind = self.kind(type_id)
            if type_id == inner:
                return True
            if kind in (STRUCT, UNION) and type_id not in seen:
                seen.add(type_id)
                tail = self._tail(type_id)
                looked_at += len(tail)
                if looked_at > 3 * _MAX_MEMBERS:
                    raise BtfError(f"BTF of {self.name}: type {inner} has too many members")
                todo += [i for i in tail[1::3] if self.size_of(i) == size]
        return False

    def enumerators(self, type_id: int) -> List[Tuple[int, int]]:
        """(name offset, value) of each enumerator of an enumeration."""
        kind, _, _, vlen, signed = self.record(type_id)
        if vlen > _MAX_MEMBERS:
            raise BtfError(f"BTF of {self.name}: type {type_id} is too large")
        tail = self._tail(type_id)
        if kind == ENUM64:
            sign = 1 << 63 if signed else 0
            return [
                (tail[i], ((tail[i + 2] << 32 | tail[i + 1]) ^ sign) - sign) for i in range(0, 3 * vlen, 3)
            ]
        sign = 1 << 31 if self.is_signed_enum(type_id) else 0
        return [(tail[i], (tail[i + 1] ^ sign) - sign) for i in range(0, 2 * vlen, 2)]

    def is_signed_enum(self, type_id: int) -> bool:
        """Whether an enumeration has negative values.

        pahole sets the kind flag for these since 1.24. If no enumeration in the whole blob has the flag,
        pahole was older, and a value with the top bit set is treated as negative.
        """
        btf, _ = self._owner(type_id)
        kind, _, _, _, flag = btf.record(type_id)
        if flag or kind == ENUM64:
            return flag
        tail = btf._tail(type_id)
        if not any(value >> 31 for value in tail[1::2]):
            return False
        return not btf._flags_enums

    @cached_property
    def _flags_enums(self) -> bool:
        """Whether any enumeration of the blob is marked as signed."""
        return bool((self._infos >> 24 == 0x80 | ENUM).any())

    def _words_to_spell(self, type_id: int, depth: int = 0) -> int:
        """Approximate number of words in the C name of a type.

        A function that takes itself as a parameter would make drgn's Type.type_name() recurse (before 0.3
        until the stack overflows). Thirty functions that each take the next one twice would fill memory.
        """
        if type_id in self._spellings:
            return self._spellings[type_id]
        kind = self.kind(type_id)
        inner: List[int] = []
        if kind == ARRAY:
            inner = [self._tail(type_id)[0]]
        elif kind in (PTR, FUNC_PROTO, TYPE_TAG, *_QUALIFIERS):
            inner = [self.record(type_id)[2]]
        if kind == FUNC_PROTO:
            inner += self._tail(type_id)[1::2]
        words = 1 + len(inner)
        if depth > _MAX_NESTING or words > _MAX_MEMBERS:
            raise BtfError(f"BTF of {self.name}: function type {type_id} is too long")
        for other in inner:
            words += self._words_to_spell(other, depth + 1)
            if words > _MAX_MEMBERS:
                raise BtfError(f"BTF of {self.name}: function type {type_id} is too long")
        self._spellings[type_id] = words
        return words

    def parameters(self, type_id: int) -> List[Tuple[Optional[str], int]]:
        """(name, type id) of each parameter of a function prototype; (None, 0) at the end is ``...``."""
        self._words_to_spell(type_id)
        vlen = self.record(type_id)[3]
        tail = self._tail(type_id)
        return [(self.string(tail[i]), tail[i + 1]) for i in range(0, 2 * vlen, 2)]


_FIND_KINDS: Dict[TypeKind, Tuple[int, ...]] = {
    TypeKind.STRUCT: (STRUCT,),
    TypeKind.UNION: (UNION,),
    TypeKind.ENUM: (ENUM, ENUM64),
    TypeKind.TYPEDEF: (TYPEDEF,),
    TypeKind.INT: (INT,),
    TypeKind.BOOL: (INT,),
    TypeKind.FLOAT: (FLOAT,),
}


class BtfTypes:
    """drgn types made from a BTF blob, each on first use.

    :param prog: program that the types are for.
    :param btf: the blob.
    :param base: types of the blob's base, if it has one.
    """

    def __init__(self, prog: drgn.Program, btf: Btf, base: Optional[BtfTypes] = None) -> None:
        self.prog = prog
        self.btf = btf
        self.base = base
        self.ambiguous: Dict[str, int] = {}
        """Names that were asked for and have several definitions, with the number of them."""
        self._made: Dict[int, drgn.Type] = {}
        self._owners: Dict[int, str] = {}  # unnamed structures -> the named one that contains them
        self._found: Dict[Tuple[TypeKind, str], Optional[drgn.Type]] = {}

    def find(self, kind: TypeKind, name: str) -> Optional[drgn.Type]:
        """The type of this kind and name in this blob, not in its base; None if there is none."""
        key = (kind, name)
        if key not in self._found:
            self._found[key] = self._find(kind, name)
        return self._found[key]

    def _find(self, kind: TypeKind, name: str) -> Optional[drgn.Type]:
        for btf_kind in _FIND_KINDS.get(kind, ()):
            found = self.btf.find(btf_kind, name)
            if len(found) > 1 and btf_kind in (STRUCT, UNION, ENUM, ENUM64):
                self.ambiguous[name] = len(found)
            for type_id in found:
                result = self.make(type_id)
                if result.kind == kind:
                    return result
        return None

    def find_function(self, name: str) -> Optional[drgn.Type]:
        """Type of a function; None if there is none of that name."""
        for type_id in self.btf.find(FUNC, name):
            return self.make(self.btf.record(type_id)[2])
        return None

    def find_variable(self, name: str) -> Optional[drgn.Type]:
        """Type of a variable; None if BTF does not have it. Usually BTF has per-CPU variables only."""
        for type_id in self.btf.find(VAR, name):
            return self.make(self.btf.record(type_id)[2])
        return None

    def find_constant(self, name: str) -> Optional[drgn.Object]:
        """An enumerator; None if there is none of that name."""
        found = self.btf.find_enumerator(name)
        if found is None:
            return None
        return drgn.Object(self.prog, self.make(found[0]), found[1])

    def find_anonymous(self, members: Sequence[str]) -> Optional[drgn.Type]:
        """The unnamed structure with members of these names, in this order; None if there is none."""
        btf = self.btf
        wanted = list(members)
        for type_id in btf.anonymous(STRUCT, len(wanted)):
            if wanted == [member.name for member in btf.members(type_id)]:
                return self.make(type_id)
        return None

    def make(self, type_id: int, depth: int = 0) -> drgn.Type:
        """The drgn type of a BTF type.

        :raises BtfError: there is no such type, or it is invalid.
        """
        if type_id in self._made:
            return self._made[type_id]
        if type_id and type_id < self.btf.first_id and self.base:
            return self.base.make(type_id, depth)
        if depth > _MAX_NESTING:
            raise BtfError(f"BTF of {self.btf.name}: type {type_id} is nested too deep")
        try:
            result = self._make(type_id, depth + 1)
        except (ValueError, TypeError, OverflowError) as e:  # drgn rejects it
            raise BtfError(f"BTF of {self.btf.name}: type {type_id} is invalid: {e}") from e
        self._made[type_id] = result
        return result

    def _make(self, type_id: int, depth: int) -> drgn.Type:
        btf, prog = self.btf, self.prog
        if not type_id:
            return prog.void_type()
        kind, name_offset, size, _, flag = btf.record(type_id)
        if kind == PTR:
            return prog.pointer_type(self.make(size, depth))
        if kind in (STRUCT, UNION):
            make = prog.struct_type if kind == STRUCT else prog.union_type
            return make(btf.string(name_offset), size, self._members(type_id))
        if kind == TYPEDEF:
            return prog.typedef_type(btf.string(name_offset) or "", self.make(size, depth))
        if kind in _QUALIFIERS:
            target = self.make(size, depth)
            return target.qualified(target.qualifiers | _QUALIFIERS[kind])
        if kind == TYPE_TAG:
            return self.make(size, depth)
        if kind == ARRAY:
            element, _, length = btf._tail(type_id)
            return prog.array_type(self.make(element, depth), length)
        if kind in (INT, ENUM, ENUM64, FLOAT) and size not in (1, 2, 4, 8, 16):
            raise BtfError(f"BTF of {btf.name}: type {type_id} cannot have {size} bytes")
        if kind == INT:
            return self._int(type_id)
        if kind in (ENUM, ENUM64):
            return self._enum(type_id)
        if kind == FUNC_PROTO:
            parameters = btf.parameters(type_id)
            variadic = parameters[-1:] == [(None, 0)]
            return prog.function_type(
                self.make(size, depth),
                [TypeParameter(self._later(i), name) for name, i in parameters[: -1 if variadic else None]],
                variadic,
            )
        if kind == FWD:
            return self._forward(btf.string(name_offset), UNION if flag else STRUCT)
        if kind == FLOAT:
            return prog.float_type(btf.string(name_offset) or "", size)
        raise BtfError(f"BTF of {btf.name}: {type_id} is not a type, but of kind {kind}")

    def _later(self, type_id: int) -> Callable[[], drgn.Type]:
        return lambda: self.make(type_id)

    def _bit_field(self, type_id: int, bits: int) -> Callable[[], drgn.Object]:
        def make() -> drgn.Object:
            try:
                return drgn.Object(self.prog, self.make(type_id), bit_field_size=bits)
            except (ValueError, TypeError) as e:
                raise BtfError(f"BTF of {self.btf.name}: a bit-field of type {type_id}: {e}") from e

        return make

    def _flexible(self, type_id: int) -> Callable[[], drgn.Type]:
        def make() -> drgn.Type:
            array = self.make(type_id)
            return self.prog.array_type(array.type, qualifiers=array.qualifiers)

        return make

    def _shaped(self, type_id: int, shapes: Sequence[Sequence[int]]) -> Callable[[], drgn.Type]:
        """An array with more than one dimension. BTF does not record the dimensions."""

        def make() -> drgn.Type:
            array = self.make(type_id)
            if array.kind != TypeKind.ARRAY:
                return array
            for lengths in shapes:
                if math.prod(lengths) == array.length:
                    result = array.type
                    for length in reversed(lengths):
                        result = self.prog.array_type(result, length)
                    return result
            return array

        return make

    def _members(self, type_id: int) -> List[TypeMember]:
        members = self.btf.members(type_id)
        # BTF encodes [] and [0] alike. At the end of a structure kernels use [], which C allows only after
        # another member.
        last = members[-1] if len(members) > 1 and self.btf.kind(type_id) == STRUCT else None
        owner = self.btf.name_of(type_id) or self._owners.get(type_id, "")
        result = []
        for member in members:
            shape = SHAPES.get(f"{owner}.{member.name}")
            self._owners.setdefault(member.type_id, owner)
            make: Callable[[], Union[drgn.Type, drgn.Object]]
            if member.bit_field_size:
                make = self._bit_field(member.type_id, member.bit_field_size)
            elif shape:
                make = self._shaped(member.type_id, shape)
            elif member is last and self.btf.is_empty_array(member.type_id):
                make = self._flexible(member.type_id)
            else:
                make = self._later(member.type_id)
            result.append(TypeMember(make, member.name, member.bit_offset))
        return result

    def _int(self, type_id: int) -> drgn.Type:
        _, name_offset, size, _, _ = self.btf.record(type_id)
        name = self.btf.string(name_offset) or ""
        encoding = self.btf._tail(type_id)[0] >> 24 & 0xF
        if encoding & _INT_BOOL:
            return self.prog.bool_type(name, size, _BYTE_ORDER)
        signed = bool(encoding & _INT_SIGNED)
        if size == 1 and not signed and name in ("char", "signed char"):
            signed = name == "signed char" or not self._marks_chars
        return self.prog.int_type(name, size, signed, _BYTE_ORDER)

    @cached_property
    def _marks_chars(self) -> bool:
        """Whether the signedness of chars is recorded.

        pahole before 1.22 did not record it, as "signed char" shows. Kernels built with it are older than
        6.2, which made char unsigned (-funsigned-char); before, it was signed, as is usual on x86.
        """
        return any(
            self.btf._tail(type_id)[0] >> 24 & _INT_SIGNED for type_id in self.btf.find(INT, "signed char")
        ) or not self.btf.find(INT, "signed char")

    def _enum(self, type_id: int) -> drgn.Type:
        _, name_offset, size, vlen, _ = self.btf.record(type_id)
        tag = self.btf.string(name_offset)
        if not vlen:
            return self.prog.enum_type(tag)
        signed = self.btf.is_signed_enum(type_id)
        name = {1: "char", 2: "short", 4: "int", 8: "long"}.get(size, "int")
        if size == 1 and signed:
            name = "signed char"
        elif not signed:
            name = "unsigned " + name
        return self.prog.enum_type(
            tag,
            self.prog.int_type(name, size, signed, _BYTE_ORDER),
            [TypeEnumerator(self.btf.string(n) or "", value) for n, value in self.btf.enumerators(type_id)],
        )

    def _forward(self, tag: Optional[str], kind: int) -> drgn.Type:
        """Resolve a declaration: to the definition if there is exactly one, as drgn does with DWARF."""
        types: Optional[BtfTypes] = self
        while types is not None and tag:
            found = types.btf.find(kind, tag)
            if len(found) == 1:
                return types.make(found[0])
            if found:
                break
            types = types.base
        return self.prog.struct_type(tag) if kind == STRUCT else self.prog.union_type(tag)
