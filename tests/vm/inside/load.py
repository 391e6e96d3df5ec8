# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps a guest's kernel changing while it is read: maps, unmaps, forks, loads and unloads modules.

``python3 -m tests.vm.inside.load MODULE.ko...``; runs until it is killed. Only the standard library.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from pathlib import Path
from typing import Sequence

_INIT_MODULE, _DELETE_MODULE = 175, 176  # x86-64
_PAUSE = 0.01
_NICE = 19  # an emulated guest has two slow processors, and its reader needs one of them whenever it runs
_LIBRARY = ctypes.CDLL(None, use_errno=True)


def _maps() -> None:
    """Address space: map and unmap pages of all sizes, with forks in between."""
    while True:
        for size in (1 << 12, 1 << 16, 1 << 21, 3 << 21):
            area = mmap.mmap(-1, size)
            for at in range(0, size, 1 << 12):
                area[at] = 1
            child = os.fork()
            if child == 0:
                area[0] = 2
                os._exit(0)
            os.waitpid(child, 0)
            area.close()
            time.sleep(_PAUSE)


def _modules(files: Sequence[str]) -> None:
    """Modules: loaded and unloaded, which also maps and unmaps vmalloc space and trampolines."""
    images = {Path(name).name.partition(".")[0].replace("-", "_"): Path(name).read_bytes() for name in files}
    while True:
        for name, image in images.items():
            _LIBRARY.syscall(_INIT_MODULE, image, ctypes.c_ulong(len(image)), b"")
            _LIBRARY.syscall(_DELETE_MODULE, name.encode(), 0)
            time.sleep(_PAUSE)


def _files() -> None:
    """Page cache and slab caches."""
    path = Path("/tmp/kvintro-load")
    while True:
        path.write_bytes(bytes(1 << 20))
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                entry.read_bytes()
            except OSError:
                continue
        path.unlink()
        time.sleep(_PAUSE)


def main(files: Sequence[str]) -> None:
    """Run all loads."""
    os.nice(_NICE)
    for work in (_maps, _files, lambda: _modules(files)):
        if os.fork() == 0:
            try:
                work()
            finally:
                os._exit(1)
    os.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
