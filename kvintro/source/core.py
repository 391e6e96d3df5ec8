# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opens dumps of any format. :mod:`kvintro.source.formats` detects the format of a file and reads it.
:mod:`kvintro.source.vmcoreinfo` finds the VMCOREINFO that belongs to its memory.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import BinaryIO, Callable, Mapping, Optional, Sequence

from kvintro.errors import NoSuchSource, NotADump
from kvintro.model import DUMP_FORMATS
from kvintro.source.beside import Beside
from kvintro.source.content import FileContent
from kvintro.source.dump import Dump
from kvintro.source.files import keep
from kvintro.source.formats import examine, recognise
from kvintro.source.formats.kdump import SplitKdump, is_part
from kvintro.source.opened import Source
from kvintro.source.other import UnknownTables, describe
from kvintro.source.packed import Plain, plain
from kvintro.source.spool import spooled
from kvintro.source.unpack import Unpacker
from kvintro.source.vmcoreinfo import Chosen, Kernels, MemorySearch, Search, Wanted, choose, in_silence

#: The name of standard input as an argument of -c.
STANDARD_INPUT = "-"
NOTHING_WANTED = Wanted()
NO_CACHE = Unpacker()
# How many bytes to search for VMCOREINFO, in proportion to the real size of the file. Compressed files have
# up to some thirty times as much memory, and a hostile one could have any amount.
_FREE_SEARCH = 256 << 20
_SEARCH_TO_FILE, _PACKED_SEARCH_TO_FILE = 2, 32
_LOOK, _PACKED_LOOK = 4 << 30, 256 << 20


def open_core(
    files: Mapping[str, BinaryIO],
    paths: Sequence[str],
    wanted: Wanted = NOTHING_WANTED,
    *,
    form: Optional[str] = None,
    snapshot: Optional[str] = None,
    search: Search = in_silence,
    unpacker: Unpacker = NO_CACHE,
    describe_others: bool = False,
) -> Source:
    """Open a dump.

    :param files: the open files by their paths. The caller closes them.
    :param paths: path of the dump, or of the parts of a split one in any order. If standard input is among
        them, this function reads it.
    :param wanted: the user's choice of VMCOREINFO.
    :param form: one of :data:`~kvintro.model.DUMP_FORMATS`; None to detect it from the content.
    :param snapshot: the snapshot to read, if a file has several.
    :param search: shows the progress of the search for VMCOREINFO, see
        :class:`~kvintro.source.vmcoreinfo.MemorySearch`.
    :param unpacker: how to unpack packed files.
    :param describe_others: see :class:`~kvintro.source.opened.Request`.
    :raises UnknownTables: kvintro does not know the page tables of the dump's architecture.
    :raises SourceError: with the reason and the remedy.
    """
    assert form is None or form in DUMP_FORMATS
    with ExitStack() as stack:
        opened = dict(files)
        if STANDARD_INPUT in paths:
            opened[STANDARD_INPUT] = stack.enter_context(_open_standard_input(form))
        names = {STANDARD_INPUT: "standard input"}
        files_of = {path: FileContent(opened[path]) for path in paths}
        plains = {
            path: Plain(content, (), True)
            if form == "raw"
            else plain(content, names.get(path, path), unpacker)
            for path, content in files_of.items()
        }
        dumps = []
        for path in paths:
            others = {other: plains[other].content for other in plains if other != path}
            beside = Beside(
                None if path == STANDARD_INPUT else path,
                others,
                lambda content, path: plain(content, path, unpacker).content,
            )
            found = plains[path]
            dump = examine(found.content, names.get(path, path), form, snapshot, beside)
            if found.layers:
                dump.packing, dump.packed, dump.size = found.layers, True, files_of[path].size
                dump.complete = dump.complete if found.whole else False
            dumps.append(dump)
        dump = _one_of(dumps, files_of, len(paths))
        source = _opened(dump, wanted, search, describe_others)
        beside_it = {c: p for p, c in dump.others if isinstance(c, FileContent) and p not in files_of}
        kept = {**{content: path for path, content in files_of.items()}, **beside_it}
        source.kept = tuple(keep(content.descriptor, path) for content, path in kept.items())
        return source


def _one_of(dumps: Sequence[Dump], named: Mapping[str, FileContent], count: int) -> Dump:
    """The dump that the files make up: one with all others as its parts, or a split one."""
    for dump in dumps:
        if dump.others and len(named) == count and len({*named} - {path for path, _ in dump.others}) == 1:
            return dump
    return SplitKdump(dumps) if count > 1 or is_part(dumps[0]) else dumps[0]


def _opened(dump: Dump, wanted: Wanted, search: Search, describe_others: bool) -> Source:
    """Find the VMCOREINFO that fits a dump's memory, and open it with that."""
    dump.check_kernel()
    factor = _PACKED_SEARCH_TO_FILE if dump.packed else _SEARCH_TO_FILE
    limit = _FREE_SEARCH + factor * dump.real
    if dump.other is not None:
        described = describe(dump, wanted, search, limit) if describe_others else None
        raise UnknownTables(dump.path, dump.other, described)
    memory = MemorySearch(
        dump.layouts, more=dump.more_layouts, watch=search, lacks=dump.lacks, limit=limit, arch=dump.arch
    )
    try:
        chosen = choose(memory, dump.path, wanted, dump.note, dump.called)
    except NotADump as error:
        raise dump.refusal(error) from None
    source = dump.opened(chosen)
    source.kernels = _kernels_in(memory, chosen, packed=dump.packed)
    return source


def _kernels_in(memory: MemorySearch, chosen: Chosen, *, packed: bool) -> Callable[[Search], Kernels]:
    """A function that searches for all kernels in a dump.

    If the dump's note was used, opening needed no search, so this one is limited too. Searching compressed
    memory takes ten times as long.
    """
    limit = None
    if chosen.address is None:
        limit = _PACKED_LOOK if packed else _LOOK
    return lambda watch: memory.kernels(watch, limit)


def _open_standard_input(form: Optional[str]) -> BinaryIO:
    """Standard input as a file: itself, or a copy if it is a pipe."""

    def check(file: BinaryIO) -> None:
        if form != "raw":
            found = recognise(FileContent(file))
            if found.packing:
                return
            if found.form == "raw" or found.form is None:
                raise NotADump(f"standard input is {found.name}", found.advice)

    if sys.stdin is None:
        raise NoSuchSource("standard input is closed", "give it a dump: < FILE, or name one with -c FILE")
    return spooled(0, check)
