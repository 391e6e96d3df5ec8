# SPDX-License-Identifier: LGPL-2.1-or-later
"""Versions and facts about the dump for a bug report, without anything that identifies a machine or user."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import replace
from typing import Iterable, Iterator, Sequence, Union

from kvintro.installation import components
from kvintro.kernels import Kernel
from kvintro.model import Report, Table
from kvintro.reports.info import (
    COMMAND_COLUMNS,
    FACT_COLUMNS,
    KERNEL_COLUMNS,
    CommandRow,
    FactRow,
    InfoReport,
    info,
    info_of_other,
)
from kvintro.source import OtherDump
from kvintro.source.vmcoreinfo import Search, in_silence

_HEAD = (
    "Read this before you send it. Addresses, paths and names of hosts are removed; of the kernel's",
    "command line, only parameters that decide about memory are shown.",
    "",
)
#: Facts of ``info`` that are shown unchanged. Release and build id identify a kernel package, not a machine.
_AS_IT_IS = (
    "release",
    "build_id",
    "arch",
    "byte_order",
    "page_size",
    "paging_levels",
    "kaslr",
    "pti",
    "symbol_count",
    "type_count",
)
_REDACTED = (
    *("format", "packed", "written_by", "size", "memory", "complete", "left_out"),
    *("excluded_types", "filter_level", "kept_types", "lost_types"),
    *("vmcoreinfo", "kernel_count", "symbols", "types"),
)
#: Prefixes of kernel parameters that affect memory.
_PARAMETERS = (
    *("kaslr", "nokaslr", "pti", "nopti", "mitigations", "no5lvl", "la57", "vsyscall", "mem=", "memmap="),
    *("memblock", "movable_node", "movablecore", "kernelcore", "crashkernel", "hugepages", "hugetlb"),
    *("default_hugepagesz", "transparent_hugepage", "mem_encrypt", "debug_pagealloc", "page_poison"),
    *("page_owner", "init_on_", "kfence", "kasan", "slub_debug", "slab_", "efi", "numa", "kpti", "rodata"),
    *("secretmem", "vmalloc", "gbpages", "nogbpages", "iommu", "swiotlb", "cgroup_disable", "lockdown"),
)
_ADDRESS = re.compile(r"\b(?:0x[0-9a-f]{5,}|[0-9a-f]{8,})\b", re.I)
_PATH = re.compile(r"(?<![\w/])(?!/proc/|/sys/)(?:~|\.{1,2})?/[^\s,;:()'\"]+")
_NETWORK = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\b(?:[0-9a-f]{1,4}:){3,}[0-9a-f:]+\b", re.I)


def redacted(text: str) -> str:
    """Remove memory addresses, network addresses, paths and this host's name from a text."""
    text = _NETWORK.sub("HOST", _PATH.sub("PATH", text))
    host = os.uname().nodename
    for name in (host, host.partition(".")[0]):
        if name in ("", "localhost"):
            continue
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "HOST", text)
    return _ADDRESS.sub("ADDRESS", text)


def bug_report(kernel: Union[Kernel, OtherDump, None], search: Search = in_silence) -> InfoReport:
    """Return the attachment for a bug report: a report of ``info`` with fewer facts.

    :param kernel: None if the bug report is not about a kernel.
    :param search: watches the search for other kernels in the memory.
    """
    facts = [FactRow(name.replace(" ", "_"), name, text, None, None) for name, text in components()]
    facts.append(FactRow("host", "this host", f"{platform.system()}, {platform.machine()}", None, None))
    if kernel is None:
        return _report(facts, [])
    found = info_of_other(kernel) if isinstance(kernel, OtherDump) else info(kernel, search)
    facts += list(_facts(found.tables[0].rows))
    commands = [replace(row, reason=row.reason and redacted(row.reason)) for row in found.tables[2].rows]
    return _report(facts, commands, [redacted(note) for note in found.notes])


def _report(
    facts: Sequence[FactRow], commands: Sequence[CommandRow], notes: Sequence[str] = ()
) -> InfoReport:
    return Report(
        command="info",
        kernel=None,
        tables=(
            Table("facts", FACT_COLUMNS, facts),
            Table("kernels", KERNEL_COLUMNS, []),
            Table("commands", COMMAND_COLUMNS, commands, "what the commands can do with it"),
        ),
        head=_HEAD,
        notes=tuple(notes),
    )


def _facts(rows: Iterable[FactRow]) -> Iterator[FactRow]:
    for row in rows:
        value, reason = row.value, row.reason and redacted(row.reason)
        if row.key in _REDACTED and isinstance(value, str):
            value = redacted(value)
        elif row.key == "command_line" and isinstance(value, str):
            value = _parameters(value)
        elif row.key == "panic" and value:
            value = "there was one; its message is removed"
        elif row.key not in (*_AS_IT_IS, *_REDACTED, "command_line", "panic"):
            continue
        yield replace(row, value=value, reason=reason, provenance=row.provenance and redacted(row.provenance))


def _parameters(line: str) -> str:
    """A kernel's command line without parameters that do not affect memory."""
    words = line.split()
    shown = [redacted(word) for word in words if word.startswith(_PARAMETERS)]
    rest = len(words) - len(shown)
    return " ".join([*shown, *([f"({rest} others are removed)"] if rest else [])])
