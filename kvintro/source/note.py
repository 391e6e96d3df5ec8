# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parses the text of VMCOREINFO, which consists of ``KEY=VALUE`` lines.

:mod:`kvintro.source.vmcoreinfo` decides whether a text belongs to the memory at hand.
"""

from __future__ import annotations

import re
from typing import Dict, Optional, Union

import drgn

from kvintro.arch import architectures, by_vmcoreinfo, names
from kvintro.errors import WrongVmcoreinfo

#: The note's name in memory, and its offset in the note.
NAME, NAME_AT = b"VMCOREINFO\0\0", 12
#: Maximum size of a text from any source. The kernel's VMCOREINFO_BYTES is a page.
MAX_TEXT = 64 << 10
#: Required keys, in addition to those of the architecture, which arch_crash_save_vmcoreinfo() writes last.
_NEEDED = ("OSRELEASE", "PAGESIZE", "SYMBOL(swapper_pg_dir)")
_ADDRESS = re.compile(r"[0-9a-fA-F]{1,16}")
_REMEDY = "give the whole text of the boot that was dumped, or run it without --vmcoreinfo"


def parse(text: Union[bytes, str]) -> Dict[str, str]:
    """The ``KEY=VALUE`` lines. A last line without a newline is ignored, as it may be truncated."""
    if isinstance(text, bytes):
        text = text.decode("ascii", "replace")
    lines = text[:MAX_TEXT].split("\0", 1)[0].split("\n")[:-1]
    return dict(line.split("=", 1) for line in lines if "=" in line)


def symbols_of(lines: Dict[str, str]) -> Dict[str, int]:
    """The addresses of the ``SYMBOL(name)`` lines, by name."""
    return {
        key[len("SYMBOL(") : -1]: int(value, 16)
        for key, value in lines.items()
        if key.startswith("SYMBOL(") and key.endswith(")") and _ADDRESS.fullmatch(value)
    }


def text_of(prog: drgn.Program) -> str:
    """The VMCOREINFO text of a program.

    :raises LookupError: the program has none.
    """
    text: str = prog["VMCOREINFO"].string_()[:MAX_TEXT].decode("ascii", "replace")
    return text


def what_is_missing(text: bytes) -> Optional[str]:
    """Why a text cannot be used, regardless of the memory; None if it can."""
    if not text.strip(b"\0"):
        return "it is empty"
    if len(text) > MAX_TEXT:
        return f"it has {len(text)} bytes, and VMCOREINFO has at most {MAX_TEXT >> 10} KB"
    lines = parse(text)
    arch = by_vmcoreinfo(lines)
    last = () if arch is None else (arch.vmcoreinfo_last,)
    missing = next((key for key in (*_NEEDED, *last) if not lines.get(key)), None)
    if missing is not None:
        return f"it has no {missing}" + (", so it was cut off" if "OSRELEASE" in lines else "")
    if arch is None:
        keys = " or ".join(dict.fromkeys(known.vmcoreinfo_keys[0] for known in architectures()))
        return f"it has no {keys}, so it was cut off or is not from a kernel for {names()}"
    return None


def text_from_file(data: bytes, path: str) -> bytes:
    """The text of a file that the user names, without changes that editors make.

    :raises WrongVmcoreinfo: it is not a text of VMCOREINFO.
    """
    if not data:
        raise WrongVmcoreinfo(f"{path} is empty", _REMEDY)
    if len(data) > 2 * MAX_TEXT:  # the steps below make copies
        raise WrongVmcoreinfo(
            f"{path} is not a whole VMCOREINFO: it has {len(data)} bytes, and VMCOREINFO has at most "
            f"{MAX_TEXT >> 10} KB",
            _REMEDY,
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"O\0S\0R\0E\0L" in data[:64]:
        raise WrongVmcoreinfo(
            f"{path} is text in UTF-16, and VMCOREINFO is ASCII",
            "convert it: iconv -f UTF-16 -t UTF-8 FILE",
        )
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    data = data.rstrip(b"\0")
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    text = b"\n".join(line.strip(b" \t") for line in lines)
    if len(text) <= MAX_TEXT and re.search(rb"[^\t\n -~]", text):
        raise WrongVmcoreinfo(f"{path} is not VMCOREINFO: it is not plain text", _REMEDY)
    problem = what_is_missing(text)
    if problem is not None:
        raise WrongVmcoreinfo(f"{path} cannot be used as VMCOREINFO: {problem}", _REMEDY)
    return text
