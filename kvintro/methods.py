# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command as a method. Made by ``tools/gen_methods.py`` from the commands' parsers; do not edit."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Iterable, Literal, Mapping, Optional, Sequence, Union

import drgn

from kvintro.answers import Answer, Listing

if TYPE_CHECKING:
    from kvintro.model import Randomised
    from kvintro.queries.members import Member
    from kvintro.queries.memory import MemoryWord
    from kvintro.queries.translate import Translation
    from kvintro.reports.aliases import AliasRow
    from kvintro.reports.check import CheckRow, FindingRow
    from kvintro.reports.convert import PagesRow
    from kvintro.reports.diff.findings import FindingRow as FindingsFindingRow
    from kvintro.reports.diff.tables import AmountRow, RegionDiffRow
    from kvintro.reports.excluded import ExcludedRow
    from kvintro.reports.explain import ExplainRow
    from kvintro.reports.identify import IdentifiedRow
    from kvintro.reports.info import CommandRow, FactRow, KernelRow
    from kvintro.reports.layout import RegionRow
    from kvintro.reports.page import PageRow
    from kvintro.reports.pages import (
        CacheRow,
        CellRow,
        FlagsRow,
        FreeRow,
        NodeRow,
        OrderRow,
        TypeRow,
        ZoneRow,
    )
    from kvintro.reports.pte import EntryRow
    from kvintro.reports.search import HitRow
    from kvintro.survey.summary import BrokenRow, BuildRow, FailureRow, OutlierRow, PlaceRow, SameRow

#: What stands for an address or a number: a string is taken as on the command line.
Word = Union[int, str, drgn.Object, drgn.Symbol]
Words = Union[Word, Iterable[Word]]


class AliasesAnswer(Answer["AliasRow"]):
    """What :meth:`Commands.aliases` returns."""

    if TYPE_CHECKING:

        @property
        def aliases(self) -> Sequence[AliasRow]: ...


class CheckAnswer(Answer["FindingRow"]):
    """What :meth:`Commands.check` returns."""

    if TYPE_CHECKING:

        @property
        def findings(self) -> Sequence[FindingRow]: ...

        @property
        def checks(self) -> Sequence[CheckRow]: ...


class ConvertAnswer(Answer["PagesRow"]):
    """What :meth:`Commands.convert` returns."""

    if TYPE_CHECKING:

        @property
        def pages(self) -> Sequence[PagesRow]: ...


class DiffAnswer(Answer["FindingsFindingRow"]):
    """What :meth:`Commands.diff` returns."""

    if TYPE_CHECKING:

        @property
        def findings(self) -> Sequence[FindingsFindingRow]: ...

        @property
        def regions(self) -> Sequence[RegionDiffRow]: ...

        @property
        def rights(self) -> Sequence[AmountRow]: ...

        @property
        def vmalloc(self) -> Sequence[AmountRow]: ...

        @property
        def modules(self) -> Sequence[AmountRow]: ...

        @property
        def types(self) -> Sequence[AmountRow]: ...


class ExplainAnswer(Answer["ExplainRow"]):
    """What :meth:`Commands.explain` returns."""

    if TYPE_CHECKING:

        @property
        def regions(self) -> Sequence[ExplainRow]: ...


class IdentifyAnswer(Answer["IdentifiedRow"]):
    """What :meth:`Commands.identify` returns."""

    if TYPE_CHECKING:

        @property
        def results(self) -> Sequence[IdentifiedRow]: ...


class InfoAnswer(Answer["FactRow"]):
    """What :meth:`Commands.info` returns."""

    if TYPE_CHECKING:

        @property
        def facts(self) -> Sequence[FactRow]: ...

        @property
        def kernels(self) -> Sequence[KernelRow]: ...

        @property
        def commands(self) -> Sequence[CommandRow]: ...


class KaslrAnswer(Answer["Randomised"]):
    """What :meth:`Commands.kaslr` returns."""

    if TYPE_CHECKING:

        @property
        def bases(self) -> Sequence[Randomised]: ...


class LayoutAnswer(Answer["RegionRow"]):
    """What :meth:`Commands.layout` returns."""

    if TYPE_CHECKING:

        @property
        def regions(self) -> Sequence[RegionRow]: ...


class PageAnswer(Answer["PageRow"]):
    """What :meth:`Commands.page` returns."""

    if TYPE_CHECKING:

        @property
        def pages(self) -> Sequence[PageRow]: ...


class PagesAnswer(Answer[Any]):
    """What :meth:`Commands.pages` returns."""

    if TYPE_CHECKING:

        @property
        def types(self) -> Sequence[TypeRow]: ...

        @property
        def zones(self) -> Sequence[ZoneRow]: ...

        @property
        def nodes(self) -> Sequence[NodeRow]: ...

        @property
        def orders(self) -> Sequence[OrderRow]: ...

        @property
        def caches(self) -> Sequence[CacheRow]: ...

        @property
        def flags(self) -> Sequence[FlagsRow]: ...

        @property
        def free(self) -> Sequence[FreeRow]: ...

        @property
        def map(self) -> Sequence[CellRow]: ...

        @property
        def excluded(self) -> Sequence[ExcludedRow]: ...


class PteAnswer(Answer["EntryRow"]):
    """What :meth:`Commands.pte` returns."""

    if TYPE_CHECKING:

        @property
        def entries(self) -> Sequence[EntryRow]: ...


class ReadAnswer(Answer[Any]):
    """What :meth:`Commands.read` returns."""

    if TYPE_CHECKING:

        @property
        def words(self) -> Sequence[MemoryWord]: ...

        @property
        def members(self) -> Sequence[Member]: ...


class ReportAnswer(Answer[Any]):
    """What :meth:`Commands.report` returns."""


class SearchAnswer(Answer["HitRow"]):
    """What :meth:`Commands.search` returns."""

    if TYPE_CHECKING:

        @property
        def hits(self) -> Sequence[HitRow]: ...


class ShowAnswer(Answer[Any]):
    """What :meth:`Commands.show` returns."""


class SurveyAnswer(Answer["BuildRow"]):
    """What :meth:`Commands.survey` returns."""

    if TYPE_CHECKING:

        @property
        def builds(self) -> Sequence[BuildRow]: ...

        @property
        def places(self) -> Sequence[PlaceRow]: ...

        @property
        def same(self) -> Sequence[SameRow]: ...

        @property
        def outliers(self) -> Sequence[OutlierRow]: ...

        @property
        def broken(self) -> Sequence[BrokenRow]: ...

        @property
        def failures(self) -> Sequence[FailureRow]: ...


class TranslateAnswer(Answer["Translation"]):
    """What :meth:`Commands.translate` returns."""

    if TYPE_CHECKING:

        @property
        def results(self) -> Sequence[Translation]: ...


class UserAnswer(Answer[Any]):
    """What :meth:`Commands.user` returns."""


class Commands:
    """The commands. Options that are None or False are left at the command's default.

    Where the command line would end with status 2 or 3, a :class:`kvintro.errors.KvintroError` is raised.
    """

    def _answer(self, kind: Any, command: str, values: Sequence[Any], options: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def aliases(
        self, address: Word, *, form: Optional[Literal["virtual", "physical", "pfn", "page"]] = None
    ) -> AliasesAnswer:
        """Every virtual address that maps a physical page, in the kernel and in processes.

        :param address: hex, symbol or symbol+offset; a number below the kernel half is a physical
            address, any other a virtual one.
        :param form: how to interpret the number.
        """
        found: AliasesAnswer = self._answer(AliasesAnswer, "aliases", (address,), {"form": form})
        return found

    def check(self) -> CheckAnswer:
        """Check the kernel's own data for contradictions: bounds, rights (is anything writable and
        executable?), lists, struct pages, /proc."""
        found: CheckAnswer = self._answer(CheckAnswer, "check", (), {})
        return found

    def diff(
        self,
        a: Union[str, "PathLike[str]"],
        b: Optional[Union[str, "PathLike[str]"]] = None,
        *,
        everything: bool = False,
        exit_code: bool = False,
    ) -> DiffAnswer:
        """What differs between two dumps, or between a dump and the running kernel.

        :param a: a dump or a saved layout or report.
        :param b: the same (default: the source that -c or --qemu names, or the running kernel).
        :param everything: also list what is the same.
        :param exit_code: exit with 1 if anything differs, with 4 if something could not be compared.
        """
        found: DiffAnswer = self._answer(
            DiffAnswer,
            "diff",
            (
                a,
                *(() if b is None else (b,)),
            ),
            {"everything": everything, "exit_code": exit_code},
        )
        return found

    def explain(self, *regions: Union[str, Iterable[str]], everything: bool = False) -> ExplainAnswer:
        """What a region is for, what decides its place, and its values on this kernel.

        :param regions: the region's key or another name, or an address in it (default: a summary of
            all).
        :param everything: all regions in full.
        """
        found: ExplainAnswer = self._answer(ExplainAnswer, "explain", (*regions,), {"everything": everything})
        return found

    def identify(
        self,
        *addresses: Words,
        form: Optional[Literal["virtual", "physical", "pfn"]] = None,
        pid: Optional[Union[int, str]] = None,
    ) -> IdentifyAnswer:
        """What is at an address: everything known about it, most specific first.

        :param addresses: hex with or without 0x, symbol or symbol+offset; - reads a list from standard
            input.
        :param form: how to interpret the numbers.
        :param pid: interpret user addresses as those of this process.
        """
        found: IdentifyAnswer = self._answer(
            IdentifyAnswer, "identify", (*addresses,), {"form": form, "pid": pid}
        )
        return found

    def info(self, *, bug_report: bool = False) -> InfoAnswer:
        """Identify a dump: its format, its kernel, and what each command can do with it.

        :param bug_report: show what a bug report needs: versions, and facts about the dump without
            addresses, paths and names of hosts; -o FILE writes the same text.
        """
        found: InfoAnswer = self._answer(InfoAnswer, "info", (), {"bug_report": bug_report})
        return found

    def kaslr(self) -> KaslrAnswer:
        """Every randomised base: default, actual value, displacement, slots and bits of entropy."""
        found: KaslrAnswer = self._answer(KaslrAnswer, "kaslr", (), {})
        return found

    def layout(self, *, holes: bool = True, pid: Optional[Union[int, str]] = None) -> LayoutAnswer:
        """The whole address space: every region and hole at its actual address.

        :param holes: show unused ranges (default).
        :param pid: count what this process maps in user space.
        """
        found: LayoutAnswer = self._answer(LayoutAnswer, "layout", (), {"holes": holes, "pid": pid})
        return found

    def page(
        self,
        *pages: Words,
        form: Optional[Literal["virtual", "physical", "pfn", "page"]] = None,
        pid: Optional[Union[int, str]] = None,
        search: bool = False,
        mappings: bool = True,
    ) -> PageAnswer:
        """One page frame: flags, type, counts, slab, file, owner, and every process that maps it.

        :param pages: address, pfn:NUMBER, symbol or symbol+offset.
        :param form: how to interpret the numbers.
        :param pid: translate user addresses with this process's page tables.
        :param search: find mappings by searching all page tables instead of the reverse map.
        :param mappings: False: do not look for mappings.
        """
        found: PageAnswer = self._answer(
            PageAnswer, "page", (*pages,), {"form": form, "pid": pid, "search": search, "mappings": mappings}
        )
        return found

    def pages(
        self,
        *,
        by: Optional[Literal["type", "zone", "node", "order", "cache", "flags", "free"]] = None,
        top: Optional[int] = None,
        range: Optional[str] = None,
        raw: bool = False,
        cells: Optional[int] = None,
        jobs: Optional[int] = None,
    ) -> PagesAnswer:
        """A census of all page frames: how much memory each use takes, and a picture of physical memory.

        :param by: count pages only by this (default: type, free blocks and a picture).
        :param top: show at most N rows of that list, the largest first.
        :param range: only physical addresses from A up to but not including B; or A+SIZE.
        :param raw: show all flags as /proc/kpageflags has them, and hide none.
        :param cells: draw at most N cells (default: 512).
        :param jobs: count in N processes (default: for a large kdump the number of processors, otherwise
            1).
        """
        found: PagesAnswer = self._answer(
            PagesAnswer,
            "pages",
            (),
            {"by": by, "top": top, "range": range, "raw": raw, "cells": cells, "jobs": jobs},
        )
        return found

    def ptdump(
        self,
        *,
        root: Optional[Literal["kernel", "user", "efi", "tramp", "idmap", "reserved"]] = None,
        pid: Optional[Union[int, str]] = None,
        range: Optional[str] = None,
        wx: bool = False,
    ) -> Listing:
        """Page tables as ranges, in the format of the kernel's own ptdump; or what is writable and
        executable.

        :param root: which tables: kernel (those that the kernel runs on), user (those that user mode
            runs on under page-table isolation), efi (those that firmware runs on); on arm64 also tramp,
            idmap and reserved (tramp_pg_dir and so on); default: kernel.
        :param pid: the tables of this process.
        :param range: only addresses from A up to but not including B; or a region's key.
        :param wx: only what is both writable and executable.
        """
        found: Listing = self._answer(
            Listing, "ptdump", (), {"root": root, "pid": pid, "range": range, "wx": wx}
        )
        return found

    def pte(
        self, *values: Words, level: Optional[str] = None, half: Optional[Literal["user", "kernel"]] = None
    ) -> PteAnswer:
        """Decode a page-table entry: flags, page, swap and migration entries.

        :param values: 64 bits in hex, with or without 0x.
        :param level: the table that the entry is from: pte (default), pmd, pud, p4d, pgd, or 1 to 5.
        :param half: which half of the address space the entry maps (default: inferred from its flags).
        """
        found: PteAnswer = self._answer(PteAnswer, "pte", (*values,), {"level": level, "half": half})
        return found

    def report(self) -> ReportAnswer:
        """Everything about a kernel on one self-contained HTML page, with the map drawn."""
        found: ReportAnswer = self._answer(ReportAnswer, "report", (), {})
        return found

    def search(
        self,
        value: Optional[Word] = None,
        *,
        string: Optional[str] = None,
        regex: Optional[str] = None,
        to: Optional[Word] = None,
        size: Optional[int] = None,
        regions: Optional[str] = None,
        phys: bool = False,
        pid: Optional[Union[int, str]] = None,
        aligned: bool = False,
        limit: Optional[int] = None,
    ) -> SearchAnswer:
        """Where a value, a string or a pointer into a range is in memory, and what contains each match.

        :param value: eight bytes: a number in hex, or a symbol.
        :param string: the bytes of this text in UTF-8.
        :param regex: bytes that match this regular expression of PCRE2.
        :param to: aligned words that point to ADDR, or into --size N bytes.
        :param size: with --to: bytes of the range, in decimal, or in hex with 0x.
        :param regions: search these regions only, as in vmalloc,modules.
        :param phys: search physical memory.
        :param pid: search the memory of this process.
        :param aligned: only at multiples of eight.
        :param limit: stop after N places (default: 100).
        """
        found: SearchAnswer = self._answer(
            SearchAnswer,
            "search",
            (*(() if value is None else (value,)),),
            {
                "string": string,
                "regex": regex,
                "to": to,
                "size": size,
                "regions": regions,
                "phys": phys,
                "pid": pid,
                "aligned": aligned,
                "limit": limit,
            },
        )
        return found

    def show(
        self,
        region: Optional[str] = None,
        *,
        table: Optional[str] = None,
        match: Optional[str] = None,
        range: Optional[str] = None,
        top: Optional[int] = None,
        sort: Optional[str] = None,
        reverse: bool = False,
        pid: Optional[Union[int, str]] = None,
    ) -> ShowAnswer:
        """List what is inside a region, from the kernel's own structures, and compare it with the page
        tables.

        :param region: a region's key or another name (default: list them).
        :param table: show only this table, without its heading and totals.
        :param match: only rows whose text matches REGEX.
        :param range: only rows that overlap the range from A up to but not including B.
        :param top: show at most N rows of each table, the largest first unless --sort is given.
        :param sort: sort by COLUMN: addresses and names ascending, sizes and counts descending.
        :param reverse: reverse the order.
        :param pid: show this process (for user and ldt_remap).
        """
        found: ShowAnswer = self._answer(
            ShowAnswer,
            "show",
            (*(() if region is None else (region,)),),
            {
                "table": table,
                "match": match,
                "range": range,
                "top": top,
                "sort": sort,
                "reverse": reverse,
                "pid": pid,
            },
        )
        return found

    def translate(
        self,
        *addresses: Words,
        form: Optional[Literal["virtual", "physical", "pfn", "page"]] = None,
        pid: Optional[Union[int, str]] = None,
        user_half: bool = False,
        root: Optional[Literal["kernel", "user", "efi", "tramp", "idmap", "reserved"]] = None,
        walk: bool = False,
    ) -> TranslateAnswer:
        """Translate between virtual addresses, physical addresses, pfns and struct pages.

        :param addresses: hex with or without 0x, symbol or symbol+offset; - reads a list from standard
            input.
        :param form: how to interpret the numbers.
        :param pid: use the page tables of this process.
        :param user_half: use the tables that user mode runs on under page-table isolation.
        :param root: use these tables, as in ptdump --root.
        :param walk: show and decode the entry at each level.
        """
        found: TranslateAnswer = self._answer(
            TranslateAnswer,
            "translate",
            (*addresses,),
            {"form": form, "pid": pid, "user_half": user_half, "root": root, "walk": walk},
        )
        return found

    def user(
        self,
        pid: Optional[Union[int, str]] = None,
        *,
        all: bool = False,
        maps: bool = False,
        table: Optional[str] = None,
        match: Optional[str] = None,
        range: Optional[str] = None,
        top: Optional[int] = None,
        sort: Optional[str] = None,
        reverse: bool = False,
    ) -> UserAnswer:
        """How much memory each process uses; or one process's areas, and how much of each is resident or
        swapped.

        :param pid: a process, by its pid or the name of its command.
        :param all: all processes, one line for each (default).
        :param maps: print the text exactly as /proc/PID/maps does.
        :param table: show only this table, without its heading and totals.
        :param match: only rows whose text matches REGEX.
        :param range: only rows that overlap the range from A up to but not including B.
        :param top: show at most N rows of each table, the largest first unless --sort is given.
        :param sort: sort by COLUMN: addresses and names ascending, sizes and counts descending.
        :param reverse: reverse the order.
        """
        found: UserAnswer = self._answer(
            UserAnswer,
            "user",
            (*(() if pid is None else (pid,)),),
            {
                "all": all,
                "maps": maps,
                "table": table,
                "match": match,
                "range": range,
                "top": top,
                "sort": sort,
                "reverse": reverse,
            },
        )
        return found

    def vtop(
        self,
        *addresses: Words,
        form: Optional[Literal["virtual", "physical", "pfn", "page"]] = None,
        pid: Optional[Union[int, str]] = None,
        user_half: bool = False,
        root: Optional[Literal["kernel", "user", "efi", "tramp", "idmap", "reserved"]] = None,
        walk: bool = False,
    ) -> TranslateAnswer:
        """As :meth:`translate`."""
        found: TranslateAnswer = self._answer(
            TranslateAnswer,
            "vtop",
            (*addresses,),
            {"form": form, "pid": pid, "user_half": user_half, "root": root, "walk": walk},
        )
        return found

    def ptov(
        self,
        *addresses: Words,
        form: Optional[Literal["virtual", "physical", "pfn", "page"]] = None,
        pid: Optional[Union[int, str]] = None,
        user_half: bool = False,
        root: Optional[Literal["kernel", "user", "efi", "tramp", "idmap", "reserved"]] = None,
        walk: bool = False,
    ) -> TranslateAnswer:
        """As :meth:`translate`."""
        found: TranslateAnswer = self._answer(
            TranslateAnswer,
            "ptov",
            (*addresses,),
            {"form": form, "pid": pid, "user_half": user_half, "root": root, "walk": walk},
        )
        return found

    def rd(
        self,
        address: Word,
        *,
        size: Optional[int] = None,
        type: Optional[str] = None,
        raw: bool = False,
        phys: bool = False,
        pid: Optional[Union[int, str]] = None,
    ) -> ReadAnswer:
        """Memory at an address: each word with what it is, the members of a type, or the bytes themselves.

        :param address: hex with or without 0x, symbol or symbol+offset; where to begin.
        :param size: how many bytes, in decimal, or in hex with 0x (default: 128).
        :param type: show the members of this type: 'struct task_struct', 'struct list_head [4]', pid_t.
        :param raw: write the bytes themselves; give -o FILE.
        :param phys: ADDR is a physical address.
        :param pid: read the memory of this process.
        """
        found: ReadAnswer = self._answer(
            ReadAnswer, "rd", (address,), {"size": size, "type": type, "raw": raw, "phys": phys, "pid": pid}
        )
        return found

    def vm(
        self,
        pid: Optional[Union[int, str]] = None,
        *,
        all: bool = False,
        maps: bool = False,
        table: Optional[str] = None,
        match: Optional[str] = None,
        range: Optional[str] = None,
        top: Optional[int] = None,
        sort: Optional[str] = None,
        reverse: bool = False,
    ) -> UserAnswer:
        """As :meth:`user`."""
        found: UserAnswer = self._answer(
            UserAnswer,
            "vm",
            (*(() if pid is None else (pid,)),),
            {
                "all": all,
                "maps": maps,
                "table": table,
                "match": match,
                "range": range,
                "top": top,
                "sort": sort,
                "reverse": reverse,
            },
        )
        return found

    def mach(self, *, bug_report: bool = False) -> InfoAnswer:
        """As :meth:`info`."""
        found: InfoAnswer = self._answer(InfoAnswer, "mach", (), {"bug_report": bug_report})
        return found
