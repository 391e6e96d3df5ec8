# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a survey asks of one dump. If a question fails, the others are still answered."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Callable, Dict, List, Mapping, Optional, Sequence, cast

from kvintro.entry_points import unforeseen
from kvintro.errors import KvintroError
from kvintro.kernels import Kernel
from kvintro.model import Absent, Asked, Report, Row, Size
from kvintro.readers.structures import struct_at, text_of
from kvintro.reports.check import CheckRow, check
from kvintro.reports.info import kernel_facts
from kvintro.reports.kaslr import kaslr
from kvintro.reports.layout import layout
from kvintro.reports.pages import pages_report
from kvintro.reports.show import Selection, show
from kvintro.survey.rows import PARTLY, TABLES, WHOLE, Answer, DumpRow, NoteRow


def _layout(kernel: Kernel) -> Report:
    return layout(kernel, holes=False)


def _contents(key: str) -> Callable[[Kernel], Report]:
    def ask(kernel: Kernel) -> Report:
        if isinstance(kernel.locate(key), Absent):
            return Report("show", kernel.identity, ())
        return show(kernel, key, Asked(), Selection())

    return ask


#: Questions by name.
_QUESTIONS: Mapping[str, Callable[[Kernel], Report]] = {
    "layout": _layout,
    "kaslr": kaslr,
    "check": check,
    "pages": pages_report,
    "callers": _contents("vmalloc"),
    "modules": _contents("modules"),
}
#: Tables of a survey, by question and key of the table in its report.
_TABLES = {
    ("layout", "regions"): "regions",
    ("kaslr", "bases"): "bases",
    ("check", "checks"): "rules",
    ("check", "findings"): "findings",
    ("pages", "types"): "pages",
    ("callers", "by_caller"): "callers",
    ("modules", "modules"): "modules",
}
#: Facts of ``info`` that a dump's row has.
_FACTS = ("boot_time", "dump_time", "uptime", "panic")


def ask(kernel: Kernel, dump: DumpRow) -> Answer:
    """All answers of a kernel.

    :param dump: what is known of its file.
    :raises MemoryError: there is not enough memory. All else becomes a note.
    """
    tables: Dict[str, List[Row]] = {name: [] for name in TABLES if name != "dumps"}
    notes: List[NoteRow] = [NoteRow("source", text, False) for text in kernel.source.warnings]
    counts: Mapping[str, int] = {}
    for name, question in _QUESTIONS.items():
        try:
            report = question(kernel)
        except MemoryError:
            raise
        except Exception as error:
            what = error.what if isinstance(error, KvintroError) else unforeseen(error)
            notes.append(NoteRow(name, what, True))
            continue
        own = [note for note in report.notes if note not in kernel.source.warnings]
        if report.partial and not own:
            own = ["not everything could be read"]
        notes += [NoteRow(name, note, report.partial) for note in own]
        for table in report.tables:
            if (name, table.key) in _TABLES:
                tables[_TABLES[name, table.key]] += table.rows
        counts = report.extra["counts"] if name == "check" else counts
    tables["notes"] += notes
    rules = cast("Sequence[CheckRow]", tables["rules"])
    unknown = sum(rule.state == "unknown" for rule in rules) if rules else None
    row = replace(
        _identified(kernel, dump),
        state=PARTLY if any(note.missing for note in notes) or unknown else WHOLE,
        defects=counts.get("defect"),
        warnings=counts.get("warning"),
        notices=counts.get("notice"),
        unknown_rules=unknown,
    )
    return Answer(row, tables)


def _identified(kernel: Kernel, dump: DumpRow) -> DumpRow:
    who, source = kernel.identity, kernel.source
    facts = {}
    with suppress(Exception):
        facts = {row.key: row.value for row in kernel_facts(kernel) if row.key in _FACTS}
    return replace(
        dump,
        format=source.format,
        complete=source.complete,
        memory=None if source.memory is None else Size(source.memory),
        release=who.release,
        build_id=who.build_id,
        arch=who.arch,
        paging_levels=who.paging_levels,
        page_size=who.page_size,
        kaslr=who.kaslr,
        isolation=who.isolation,
        types=who.types,
        symbols=who.symbols,
        host=_host(kernel),
        **facts,  # type: ignore[arg-type]
    )


def _host(kernel: Kernel) -> Optional[str]:
    """The name of the machine (include/linux/utsname.h); None if it cannot be read."""
    try:
        names = struct_at(kernel, "struct uts_namespace", kernel.symbol("init_uts_ns"))
        return text_of(names.name.nodename)
    except MemoryError:
        raise
    except Exception:
        return None
