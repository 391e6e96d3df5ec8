# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts of the pages that were written to a new dump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

from kvintro.convert import Watch, convert, unwatched
from kvintro.kernels import Kernel
from kvintro.model import Column, Report, Size, Table
from kvintro.text import size_text

_WHAT = {
    "written": "in the file",
    "zeros": "  of zeros, without space on disk",
    "free": "excluded: free",
    "cache": "excluded: cache pages without private flag",
    "cache_private": "excluded: cache pages with private flag",
    "user": "excluded: memory of processes",
    "hwpoison": "excluded: broken memory",
    "offline": "excluded: offline",
    "firmware": "excluded: beyond the kernel's memory",
    "left_out": "already excluded from the source",
    "unreadable": "could not be read",
}


@dataclass(frozen=True)
class PagesRow:
    """Pages with the same outcome.

    :ivar key: name of the outcome in JSON.
    """

    key: str
    what: str
    pages: int
    size: Size


COLUMNS = (Column("what", "pages"), Column("pages", "number", "right"), Column("size", "size", "right"))


def convert_report(
    kernel: Kernel,
    path: str,
    *,
    form: str,
    compress: str,
    level: int,
    force: bool,
    watch: Watch = unwatched,
) -> Report:
    """Write a dump and report its content. See :func:`kvintro.convert.convert`."""
    done = convert(kernel, path, form=form, compress=compress, level=level, force=force, watch=watch)
    counts = {
        "written": done.written,
        "zeros": done.zeros,
        **done.excluded,
        "left_out": done.left_out,
        "unreadable": done.unreadable,
    }
    rows: List[PagesRow] = [
        PagesRow(key, what, counts[key], Size(counts[key] * done.page))
        for key, what in _WHAT.items()
        if counts.get(key) or key == "written"
    ]
    notes = list(kernel.source.warnings)
    if done.unreadable:
        notes.append(
            f"{done.unreadable} pages should be in the source but could not be read; the file marks them "
            "as excluded"
        )
    if kernel.source.live:
        notes.append("if the kernel ran while it was read, its data may contradict each other")
    kind = "ELF" if form == "elf" else "kdump" if compress == "none" else f"kdump, {compress}"
    return Report(
        command="convert",
        kernel=kernel.identity,
        tables=(Table("pages", COLUMNS, rows),),
        head=(f"{path}: {kind}, {size_text(done.size)}, {size_text(done.real)} on disk",),
        notes=tuple(notes),
        partial=bool(done.unreadable),
        extra={"path": path, "format": form, "level": level, "size": done.size, "real": done.real},
    )
