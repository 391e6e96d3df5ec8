# SPDX-License-Identifier: LGPL-2.1-or-later
"""Functions that pack files for tests, with Python's modules, libraries and programs, and in blocks."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
import zlib
from importlib import import_module
from typing import Any, Callable, Dict

import pytest


def library(name: str) -> Any:
    """A library; skips the test if it is missing."""
    try:
        return import_module(name)
    except ImportError:
        pytest.skip(f"{name} is missing (pip install 'kvintro[test]')")


def program(name: str, *options: str) -> Callable[[bytes], bytes]:
    """A function that packs with a program; skips the test if the program is missing."""

    def pack(data: bytes) -> bytes:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is missing (apt install {name})")
        return subprocess.run([name, "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout

    return pack


def bgzip(data: bytes) -> bytes:
    """Blocks of gzip with their sizes (SAM/BAM specification, 4.1), and an empty one at the end."""
    out = b""
    for at in (*range(0, len(data), 65280), len(data)):
        part = data[at : at + 65280]
        raw = zlib.compressobj(1, zlib.DEFLATED, -15)
        body = raw.compress(part) + raw.flush()
        head = struct.pack("<4sIBBH2sHH", b"\x1f\x8b\x08\x04", 0, 0, 255, 6, b"BC", 2, len(body) + 25)
        out += head + body + struct.pack("<II", zlib.crc32(part), len(part))
    return out


def seekable_zstd(data: bytes, *, sums: bool = False) -> bytes:
    """zstd's seekable format: frames, and a skippable frame with a table of them."""
    compressor = library("zstandard").ZstdCompressor(write_checksum=True)
    frames = [compressor.compress(data[at : at + 100000]) for at in range(0, len(data), 100000)]
    table = b""
    for number, frame in enumerate(frames):
        table += struct.pack("<II", len(frame), len(data[number * 100000 :][:100000])) + bytes(
            4 if sums else 0
        )
    table += struct.pack("<IBI", len(frames), 0x80 if sums else 0, 0x8F92EAB1)
    return b"".join(frames) + struct.pack("<II", 0x184D2A5E, len(table)) + table


def sized_lz4(data: bytes) -> bytes:
    """A frame of independent blocks that records the size of the content."""
    frame = library("lz4.frame")
    packed: bytes = frame.compress(data, block_size=4, block_linked=False, store_size=True)
    return packed


PACKERS: Dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=0),
    "zstd": lambda data: bytes(library("zstandard").compress(data)),
    "lz4": lambda data: bytes(library("lz4.frame").compress(data, store_size=False)),
    "lzop": program("lzop", "-1"),
}
IN_BLOCKS: Dict[str, Callable[[bytes], bytes]] = {
    "bgzip": bgzip,
    "seekable zstd": seekable_zstd,
    "seekable zstd with checksums": lambda data: seekable_zstd(data, sums=True),
    "lz4 with its size": sized_lz4,
}
