# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text of VMCOREINFO: lines of ``KEY=VALUE``, from which everything else follows.

Whether a text is that of the memory at hand is for :mod:`kvintro.source.vmcoreinfo` to say.
"""

from __future__ import annotations

import re
from typing import Dict, Optional, Union

import drgn

from kvintro.errors import WrongVmcoreinfo

#: A text may be no longer, wherever it comes from. The kernel's VMCOREINFO_BYTES is a page.
MAX_TEXT = 64 << 10
#: Without these nothing can be read. arch_crash_save_vmcoreinfo() writes most of them, last of all.
_NEEDED = ("OSRELEASE", "PAGESIZE", "SYMBOL(swapper_pg_dir)", "NUMBER(phys_base)", "KERNELOFFSET")
_ADDRESS = re.compile(r"[0-9a-fA-F]{1,16}")
_REMEDY = "give the whole text of the boot that was dumped, or run it without --vmcoreinfo"


def parse(text: Union[bytes, str]) -> Dict[str, str]:
    """The ``KEY=VALUE`` lines. The last one counts only if it ends as a line: it may have been cut off."""
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
    """The text that a program has.

    :raises LookupError: it has none.
    """
    text: str = prog["VMCOREINFO"].string_()[:MAX_TEXT].decode("ascii", "replace")
    return text


def what_is_missing(text: bytes) -> Optional[str]:
    """Why a text is of no use, whatever the memory says; None if it is."""
    if not text.strip(b"\0"):
        return "it is empty"
    if len(text) > MAX_TEXT:
        return f"it has {len(text)} bytes, and VMCOREINFO at most {MAX_TEXT >> 10} KB"
    lines = parse(text)
    missing = next((key for key in _NEEDED if not lines.get(key)), None)
    if missing is None:
        return None
    return f"it has no {missing}" + (", so it was cut off" if "OSRELEASE" in lines else "")


def text_from_file(data: bytes, path: str) -> bytes:
    """The text of a file that a person names; editors leave their marks in it.

    :raises WrongVmcoreinfo: it is none.
    """
    if not data:
        raise WrongVmcoreinfo(f"{path} is empty", _REMEDY)
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
        raise WrongVmcoreinfo(f"{path} is no VMCOREINFO: it is no plain text", _REMEDY)
    problem = what_is_missing(text)
    if problem is not None:
        raise WrongVmcoreinfo(f"{path} is no whole VMCOREINFO: {problem}", _REMEDY)
    return text
