# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unpacks files that are packed as a whole, into a file in the cache or an unnamed one.

A file of a few bytes can unpack to more than a disk can hold, but a machine's memory never compresses that
well. So the size is limited in proportion to the packed size, and by the free space.
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import shutil
import subprocess
import tempfile
import zlib
from importlib import import_module
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, NamedTuple, Optional, Protocol, Tuple

from kvintro.errors import NotADump, SourceError
from kvintro.source.cache import Cache
from kvintro.source.content import Content, FileContent
from kvintro.source.spool import room_in, spool_directory
from kvintro.text import size_text

_PIECE = 1 << 20
_HOLE = 1 << 16  # zeros that become a hole
# gzip packs zeros to a thousandth, others even better; but no memory has only zeros. A kernel alone takes
# more than a megabyte, so small files that unpack to much are refused within a second.
_LIMIT_FREE, _LIMIT_TO_PACKED = 64 << 20, 1024
_MAX_WINDOW = 1 << 27  # zstd's own limit for unpacking without --long
_MAX_STREAMS = 1 << 20  # concatenated; those of bgzip have 64 KB

# The magic numbers of streams, and of frames that zstd and lz4 skip.
_LZ4_FRAME = b"\x04\x22\x4d\x18"
_STREAMS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", _LZ4_FRAME, b"\x28\xb5\x2f\xfd")
_SKIPPABLE = b"\x2a\x4d\x18"

#: Number of bytes read from the packed file so far, and the next unpacked bytes.
Piece = Tuple[int, bytes]
#: Shows the progress of unpacking: takes the pieces and the packed size, and yields the pieces.
Watch = Callable[[Iterable[Piece], int], Iterable[Piece]]


def unwatched(pieces: Iterable[Piece], size: int) -> Iterable[Piece]:
    """Shows no progress."""
    return pieces


class Unpacker(NamedTuple):
    """How to unpack files.

    :ivar watch: see :data:`Watch`.
    :ivar cache: cache for unpacked content; None to keep nothing.
    """

    watch: Watch = unwatched
    cache: Optional[Cache] = None


class Unpacked(NamedTuple):
    """The content of a packed file.

    :ivar whole: whether the packed file was complete and undamaged.
    """

    content: FileContent
    whole: bool


class _Decoder(Protocol):
    """Unpacks a stream piece by piece, with the interface of :class:`lzma.LZMADecompressor`."""

    @property
    def eof(self) -> bool:
        """Whether the end of the packed stream was reached."""

    @property
    def needs_input(self) -> bool:
        """Whether there is no more output without more input."""

    @property
    def unused_data(self) -> Any:
        """Data after the end of the stream."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """The next bytes, at most ``max_length``."""


class _Zlib:
    """zlib's decoder, for data with a gzip or zlib header."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(zlib.MAX_WBITS | 32)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)


_DECODERS: Dict[str, Callable[[], _Decoder]] = {
    "gzip": _Zlib,
    "zlib": _Zlib,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "lzma": lzma.LZMADecompressor,
}
#: Formats that Python does not support: the names of their programs, and how to install support for them.
_PROGRAMS = {"zstd": "zstd", "lz4": "lz4", "lzop": "lzop"}
_INSTALL = {
    "zstd": "install zstd, or pip install 'kvintro[packed]'",
    "lz4": "install lz4, or pip install 'kvintro[packed]'",
    "lzop": "install lzop",
}


def unpacked(content: Content, start: int, form: str, path: str) -> FileContent:
    """Unpack part of a file, from an offset to the file's end. The result is not cached.

    :param form: ``gzip``, ``zlib``, ``bzip2``, ``xz``, ``lzma``, ``zstd``, ``lz4`` or ``lzop``.
    :raises SourceError: no program or library here unpacks it, or there is no room.
    """
    return unpack(content, start, form, path, Unpacker()).content


def unpack(content: Content, start: int, form: str, path: str, how: Unpacker) -> Unpacked:
    """As :func:`unpacked`, but uses the cache for whole files.

    :raises SourceError: no program or library here unpacks it, or there is no room.
    """
    entry = None
    if how.cache is not None and start == 0 and isinstance(content, FileContent):
        entry = how.cache.entry(content.descriptor, form)
        known = entry.open()
        if known is not None:
            with known:
                return Unpacked(FileContent(known), True)
    directory = spool_directory() if entry is None else entry.directory
    limit = _LIMIT_FREE + _LIMIT_TO_PACKED * min(content.real, content.size - start)
    state = _State()
    try:
        file: BinaryIO
        with contextlib.ExitStack() as stack:
            if entry is None:
                file = stack.enter_context(tempfile.TemporaryFile(dir=directory))
            else:
                file = stack.enter_context(entry.create())
            try:
                packed = _pieces(content, start, form, state)
            except SourceError as error:
                raise SourceError(f"{path}: {error.what}", error.remedy) from None
            pieces = how.watch(packed, content.size - start)
            _write(file, pieces, limit, path, directory)
            if entry is not None and state.whole:
                entry.keep()
            return Unpacked(FileContent(file), state.whole)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be unpacked in {directory}: {error.strerror}", "set TMPDIR, and use --no-cache"
        ) from None
    finally:
        if entry is not None:
            entry.drop()


class _State:
    """Whether everything could be unpacked."""

    whole = True


def _write(file: BinaryIO, pieces: Iterable[Piece], limit: int, path: str, directory: str) -> None:
    """Write pieces, with zeros as holes.

    :raises SourceError: they are too large in total.
    """
    size = written = 0
    room = room_in(directory)
    for _, data in pieces:
        if size + len(data) > limit:
            what = f"{path} unpacks to {size_text(size + len(data))} or more, which is too much for memory"
            raise NotADump(what, "is it damaged?")
        for at in range(0, len(data), _HOLE):
            part = data[at : at + _HOLE]
            if part.count(0) != len(part):
                written += len(part)
                os.pwrite(file.fileno(), part, size + at)
        if written > room:
            raise SourceError(
                f"{path} unpacks to {size_text(size + len(data))} or more, "
                f"which is the free space in {directory}",
                "set TMPDIR to a directory with more room, and use --no-cache",
            )
        size += len(data)
    os.truncate(file.fileno(), size)


def beginning(content: Content, form: str, size: int) -> bytes:
    """The first ``size`` unpacked bytes of a file; fewer if it has fewer.

    :raises SourceError: no program or library here unpacks it.
    """
    found = b""
    for _, data in _pieces(content, 0, form, _State()):
        found += data
        if len(found) >= size:
            break
    return found[:size]


def _pieces(content: Content, start: int, form: str, state: _State) -> Iterator[Piece]:
    old = form == "lz4" and content.at(start, 4) != _LZ4_FRAME  # only the program supports this
    decoder = _DECODERS.get(form) or (None if old else _library(form))
    if decoder is not None:
        return _by_decoder(content, start, decoder, state)
    program = shutil.which(_PROGRAMS[form])
    if program is None:
        raise SourceError(f"it is packed with {form}, and no tool to unpack it is installed", _INSTALL[form])
    if not isinstance(content, FileContent):
        raise SourceError(f"it is packed with {form} within another file", "unpack it first")
    return _by_program(content.descriptor, start, program, state)


def _library(form: str) -> Optional[Callable[[], _Decoder]]:
    """A decoder from a third-party library; None if it is not installed."""
    try:
        if form == "lz4":
            made: Callable[[], _Decoder] = import_module("lz4.frame").LZ4FrameDecompressor
            return made
        if form == "zstd":
            library = import_module("zstandard")
            return lambda: _Zstd(library)
    except ImportError:
        pass
    return None


def _by_decoder(content: Content, start: int, make: Callable[[], _Decoder], state: _State) -> Iterator[Piece]:
    """Unpack by a decoder. Truncated or damaged input yields as much as possible."""
    decoder = make()
    at, data = start, b""
    for _ in range(_MAX_STREAMS):
        while not decoder.eof:
            if not data and decoder.needs_input:
                data = content.at(at, _PIECE)
                at += len(data)
                if not data:
                    state.whole = False
                    return
            try:
                out, data = decoder.decompress(data, _PIECE), b""
            except Exception:  # each library has its own exceptions
                state.whole = False
                return
            if out:
                yield at, out
        # Streams may be concatenated, as by pigz, bgzip and pbzip2.
        data = bytes(decoder.unused_data or b"")
        if not data:
            data = content.at(at, _PIECE)
            at += len(data)
        if not (data.startswith(_STREAMS) or data[1:4] == _SKIPPABLE):
            return
        decoder = make()
    state.whole = False


class _Zstd:
    """The decoder of the package zstandard. It does not limit its output, so its input is limited."""

    _STEP = 2048  # packed bytes, of which each four can unpack to 128 KB

    def __init__(self, library: Any) -> None:
        self._object = library.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        self._data = b""
        self._at = 0

    @property
    def eof(self) -> bool:
        return bool(self._object.eof)

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._data)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._object.unused_data) + self._data[self._at :]

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if data:
            self._data, self._at = data, 0
        part = self._data[self._at : self._at + self._STEP]
        self._at += len(part)
        return bytes(self._object.decompress(part))


def _by_program(descriptor: int, start: int, program: str, state: _State) -> Iterator[Piece]:
    """Unpack by a program, which reads the file itself."""
    os.lseek(descriptor, start, os.SEEK_SET)
    with subprocess.Popen(
        [program, "-dc"], stdin=descriptor, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            while True:
                data = process.stdout.read(_PIECE)
                if not data:
                    break
                # The program shares the position in the file.
                yield os.lseek(descriptor, 0, os.SEEK_CUR) - start, data
            state.whole = process.wait() == 0
        finally:
            process.kill()
