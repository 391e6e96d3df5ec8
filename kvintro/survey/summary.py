# SPDX-License-Identifier: LGPL-2.1-or-later
"""What many dumps say together: groups by kernel build, where KASLR put them, and which ones stand out."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from statistics import median
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, cast

from kvintro.model import Column, Randomised, Report, Row, Size, Table
from kvintro.regions.vmalloc import SumRow
from kvintro.reports.check import CheckRow
from kvintro.reports.pages import TypeRow
from kvintro.survey.rows import FAILED, PARTLY, WHOLE, Answer, DumpRow
from kvintro.survey.statistics import STANDS_OUT, evenness, scores

#: Fewer places than these are not tested.
FEWEST = 20
#: A p-value below this contradicts an even choice. Several bases are tested, so it is small.
LEVEL = 0.001
#: Fewer dumps than these are not compared.
_FEWEST_MACHINES = 10
#: Differences that are smaller are of no interest: a share of all memory, and bytes of vmalloc.
_LEAST_SHARE, _LEAST_SIZE = 0.01, 1 << 20
_MOST_ROWS = 100
#: Only the largest are compared, because a damaged dump can have any number of names.
_MOST_NAMES = 500
_BINS = 16
#: By how much a bound on the number of places can be wrong. The end of the image's window depends on the size
#: of its relocations, a few megabytes of one gigabyte.
_VAGUE = {"image_virtual": 0.02}
_BARS = "▁▂▃▄▅▆▇█"
#: Severities by the state of a rule, the most severe first.
_SEVERITIES = {"failed": "defect", "warning": "warning", "notice": "notice"}
#: Bases that are drawn once in a boot, and together identify it.
_OF_A_BOOT = ("direct_map", "vmalloc", "vmemmap", "image_virtual")


@dataclass(frozen=True)
class BuildRow:
    """The dumps of one kernel build.

    :ivar boots: number of different boots, by where KASLR put them; None if no dump shows that.
    :ivar memory: median of the memory in the dumps.
    :ivar with_defects: number of dumps with a defect.
    :ivar unchecked: number of dumps in which some rule could not be decided.
    """

    release: Optional[str]
    build_id: Optional[str]
    arch: Optional[str]
    dumps: int
    boots: Optional[int]
    memory: Optional[Size]
    with_defects: int
    unchecked: int


@dataclass(frozen=True)
class PlaceRow:
    """How the places of one base are spread over all places that KASLR could choose.

    :ivar boots: number of boots whose place is known. Several dumps of one boot count once.
    :ivar distinct: number of different addresses among them.
    :ivar distance: the statistic of the Kolmogorov-Smirnov test.
    :ivar p: the probability of this distance or a larger one if all places are equally likely.
    :ivar bins: number of boots in each sixteenth of the places.
    :ivar spread: the same as bars.
    """

    key: str
    what: str
    boots: int
    distinct: int
    distance: Optional[float]
    p: Optional[float]
    verdict: str
    spread: str
    bins: Sequence[int]


@dataclass(frozen=True)
class SameRow:
    """Dumps with the same bases: of one boot, of machines that were cloned while they ran, or of kernels
    whose random numbers are predictable.

    :ivar hosts: number of different names of machines; None if no dump shows one.
    :ivar boot_times: number of different times of boot; None if no dump shows one.
    """

    release: Optional[str]
    dumps: int
    hosts: Optional[int]
    boot_times: Optional[int]
    first: str


@dataclass(frozen=True)
class OutlierRow:
    """A value of one dump that is far from the median of all dumps of this architecture.

    :ivar about: ``memory by type`` or ``vmalloc by caller``.
    :ivar usual: the median; of memory, as a share of this dump's memory.
    :ivar score: the modified z-score.
    """

    about: str
    name: str
    size: Size
    usual: Size
    score: float
    path: str


@dataclass(frozen=True)
class BrokenRow:
    """A rule of ``check`` that found something, or could not be decided.

    :ivar severity: of its most severe finding; None if there is no finding.
    :ivar broken: number of dumps in which it found something.
    :ivar unknown: number of dumps in which it could not be decided.
    :ivar first: path of the first dump with findings, else of the first that is not known.
    """

    severity: Optional[str]
    rule: str
    title: str
    broken: int
    findings: int
    unknown: int
    first: str


@dataclass(frozen=True)
class FailureRow:
    """Dumps that could not be read for the same reason."""

    error: str
    remedy: Optional[str]
    dumps: int
    first: str


_TABLES: Mapping[str, Tuple[str, Sequence[Column]]] = {
    "builds": (
        "kernel builds",
        (
            Column("release", "release"),
            Column("build_id", "build id", spare=3),
            Column("arch", "architecture", spare=2),
            Column("dumps", "dumps", "right"),
            Column("boots", "boots", "right"),
            Column("memory", "memory (median)", "right", 1),
            Column("with_defects", "with defects", "right"),
            Column("unchecked", "not fully checked", "right", 1),
        ),
    ),
    "places": (
        "where KASLR put them",
        (
            Column("what", "base"),
            Column("boots", "boots", "right"),
            Column("distinct", "different", "right", 2),
            Column("spread", "spread", spare=1),
            Column("distance", "distance", "right", 3),
            Column("p", "p", "right"),
            Column("verdict", "verdict"),
        ),
    ),
    "same": (
        "dumps with the same bases",
        (
            Column("release", "release"),
            Column("dumps", "dumps", "right"),
            Column("hosts", "hosts", "right"),
            Column("boot_times", "boot times", "right"),
            Column("first", "first dump"),
        ),
    ),
    "outliers": (
        "dumps that stand out",
        (
            Column("about", "about", spare=1),
            Column("name", "name"),
            Column("size", "here", "right"),
            Column("usual", "usual", "right"),
            Column("score", "score", "right", 2),
            Column("path", "dump"),
        ),
    ),
    "broken": (
        "rules that found something, or are unknown",
        (
            Column("severity", "severity"),
            Column("rule", "rule"),
            Column("title", "what should be so", spare=2),
            Column("broken", "dumps", "right"),
            Column("findings", "findings", "right", 1),
            Column("unknown", "unknown", "right"),
            Column("first", "first dump"),
        ),
    ),
    "failures": (
        "dumps that could not be read",
        (
            Column("error", "error"),
            Column("remedy", "remedy", spare=2),
            Column("dumps", "dumps", "right"),
            Column("first", "first dump"),
        ),
    ),
}


class Summary:
    """Collects what the summary needs of each answer."""

    def __init__(self) -> None:
        self._dumps: List[Tuple[str, DumpRow]] = []
        self._bases: Dict[str, Dict[str, Randomised]] = {}
        self._pages: Dict[str, Dict[str, int]] = {}
        self._callers: Dict[str, Dict[str, int]] = {}
        self._rules: Dict[str, List[Tuple[str, CheckRow]]] = defaultdict(list)

    def add(self, path: str, answer: Answer) -> None:
        """Add the answer about one dump."""
        self._dumps.append((path, answer.dump))
        for base in cast("Sequence[Randomised]", answer.tables["bases"]):
            self._bases.setdefault(path, {})[base.key] = base
        incomplete = {row.question for row in answer.tables["notes"] if row.missing}  # type: ignore[attr-defined]
        # Parts that are incomplete would seem to be small.
        if "pages" not in incomplete and answer.tables["pages"]:
            types = cast("Sequence[TypeRow]", answer.tables["pages"])
            self._pages[path] = {row.type: row.size for row in types}
        if "callers" not in incomplete and answer.tables["callers"]:
            callers = cast("Sequence[SumRow]", answer.tables["callers"])
            self._callers[path] = {row.name: row.size for row in callers}
        for rule in cast("Sequence[CheckRow]", answer.tables["rules"]):
            if rule.findings or rule.state == "unknown":
                self._rules[rule.key].append((path, rule))

    def report(self) -> Report:
        """The summary of all answers so far."""
        boots = self._boots()
        rows: Mapping[str, Sequence[Row]] = {
            "builds": self._builds(boots),
            "places": self._places(boots),
            "same": self._same(boots),
            "outliers": self._outliers(),
            "broken": self._broken(),
            "failures": self._failures(),
        }
        states = Counter(row.state for _, row in self._dumps)
        copies = sum(row.copies for _, row in self._dumps)
        notes = [f"not counted again because they are copies: {copies}"] if copies else []
        for key in rows:
            if len(rows[key]) > _MOST_ROWS:
                notes.append(f"{_TABLES[key][0]}: the first {_MOST_ROWS} of {len(rows[key])} rows")
        return Report(
            command="survey",
            kernel=None,
            tables=[
                Table(key, columns, rows[key][:_MOST_ROWS], title)
                for key, (title, columns) in _TABLES.items()
            ],
            head=(
                f"{len(self._dumps)} dumps: {states[WHOLE]} answered, {states[PARTLY]} answered in part, "
                f"{states[FAILED]} not read",
            ),
            notes=notes,
            partial=states[WHOLE] < len(self._dumps),
            extra={
                "dumps": len(self._dumps),
                "states": {state: states[state] for state in (WHOLE, PARTLY, FAILED)},
                "copies": copies,
            },
        )

    def _boots(self) -> Dict[Tuple[object, ...], List[str]]:
        """Dumps by the bases of their boot, for dumps with KASLR whose bases are all known."""
        found: Dict[Tuple[object, ...], List[str]] = defaultdict(list)
        for path, dump in self._dumps:
            bases = self._bases.get(path, {})
            drawn = [bases[key] for key in _OF_A_BOOT if key in bases]
            if any(row.state == "on" for row in drawn) and all(row.actual is not None for row in drawn):
                boot = (dump.build_id, dump.release, *(row.actual for row in drawn))
                found[boot].append(path)
        return found

    def _builds(self, boots: Mapping[Tuple[object, ...], Sequence[str]]) -> List[BuildRow]:
        of_boot = {path: key for key, paths in boots.items() for path in paths}
        groups: Dict[Tuple[Optional[str], ...], List[Tuple[str, DumpRow]]] = defaultdict(list)
        for path, dump in self._dumps:
            if dump.state != FAILED:
                groups[dump.release, dump.build_id, dump.arch].append((path, dump))
        out = []
        for (release, build_id, arch), group in groups.items():
            known = {of_boot[path] for path, _ in group if path in of_boot}
            memory = sorted(dump.memory for _, dump in group if dump.memory is not None)
            out.append(
                BuildRow(
                    release,
                    build_id,
                    arch,
                    len(group),
                    len(known) or None,
                    Size(memory[len(memory) // 2]) if memory else None,
                    sum(bool(dump.defects) for _, dump in group),
                    sum(dump.unknown_rules is None or dump.unknown_rules > 0 for _, dump in group),
                )
            )
        return sorted(out, key=lambda row: -row.dumps)

    def _places(self, boots: Mapping[Tuple[object, ...], Sequence[str]]) -> List[PlaceRow]:
        drawn: Dict[str, List[Randomised]] = {}
        for paths in boots.values():
            for key, base in self._bases[paths[0]].items():
                # The first dump of a boot in which the place is known speaks for it.
                known = [self._bases[path][key] for path in paths if key in self._bases[path]]
                best = next((row for row in known if row.place is not None), base)
                if best.state == "on":
                    drawn.setdefault(key, []).append(best)
        return [_place_row(key, rows) for key, rows in drawn.items()]

    def _same(self, boots: Mapping[Tuple[object, ...], Sequence[str]]) -> List[SameRow]:
        dumps = dict(self._dumps)
        out = []
        for paths in boots.values():
            if len(paths) < 2:
                continue
            times = {dumps[path].boot_time for path in paths} - {None}
            hosts = {dumps[path].host for path in paths} - {None}
            release = dumps[paths[0]].release
            out.append(SameRow(release, len(paths), len(hosts) or None, len(times) or None, paths[0]))
        return sorted(out, key=lambda row: -row.dumps)

    def _outliers(self) -> List[OutlierRow]:
        found: List[OutlierRow] = []
        for arch in {dump.arch for _, dump in self._dumps}:
            # Machines of different architectures differ anyway.
            paths = [path for path, dump in self._dumps if dump.arch == arch]
            for about, values in (("memory by type", self._pages), ("vmalloc by caller", self._callers)):
                there = {path: values[path] for path in paths if path in values}
                found += _far(about, there, shares=values is self._pages)
        return sorted(found, key=lambda row: (-abs(row.score), row.about, row.name, row.path))

    def _broken(self) -> List[BrokenRow]:
        out = []
        for key, rows in self._rules.items():
            broken = [(path, row) for path, row in rows if row.findings]
            states = {row.state for _, row in broken}
            out.append(
                BrokenRow(
                    next((word for state, word in _SEVERITIES.items() if state in states), None),
                    key,
                    rows[0][1].title,
                    len(broken),
                    sum(row.findings for _, row in broken),
                    sum(row.state == "unknown" for _, row in rows),
                    (broken or rows)[0][0],
                )
            )
        order = (*_SEVERITIES.values(), None)
        return sorted(out, key=lambda row: (order.index(row.severity), -row.broken, -row.unknown))

    def _failures(self) -> List[FailureRow]:
        found: Dict[Tuple[str, Optional[str]], List[str]] = defaultdict(list)
        for path, dump in self._dumps:
            if dump.error is not None:
                found[dump.error, dump.remedy].append(path)
        rows = [FailureRow(error, remedy, len(paths), paths[0]) for (error, remedy), paths in found.items()]
        return sorted(rows, key=lambda row: -row.dumps)


def _place_row(key: str, rows: Sequence[Randomised]) -> PlaceRow:
    parts = [part for part in map(_part, rows) if part is not None]
    bins = [0] * _BINS
    for low, high in parts:
        bins[min(int((low + high) / 2 * _BINS), _BINS - 1)] += 1
    found = PlaceRow(
        key=key,
        what=rows[0].what,
        boots=len(parts),
        distinct=len({row.actual for row in rows if _part(row) is not None}),
        distance=None,
        p=None,
        verdict="",
        spread="".join(_BARS[count * (len(_BARS) - 1) // (max(bins) or 1)] for count in bins),
        bins=bins,
    )
    if not parts:
        return replace(found, verdict="not tested: the possible places are not known exactly", spread="")
    if len(parts) < FEWEST:
        return replace(found, verdict=f"too few boots: {len(parts)}, and {FEWEST} are needed")
    distance, p = evenness(parts)
    verdict = "not even" if p < LEVEL else "nothing against an even choice"
    return replace(found, distance=round(distance, 4), p=float(f"{p:.2g}"), verdict=verdict)


def _part(row: Randomised) -> Optional[Tuple[float, float]]:
    """Where the place is among all, from 0 to 1; None if that is not known."""
    slots, place, vague = row.slots, row.place, _VAGUE.get(row.key)
    if slots is None or place is None or (row.bound and vague is None):
        return None
    fewest = slots * (1 - (vague or 0) * (row.bound == "at most"))
    most = slots * (1 + (vague or 0) * (row.bound == "at least"))
    return min(place / most, 1.0), min((place + 1) / fewest, 1.0)


def _far(about: str, dumps: Mapping[str, Mapping[str, int]], *, shares: bool) -> Iterator[OutlierRow]:
    """Values that are far from the median of these dumps. A name that a dump lacks counts as zero."""
    if len(dumps) < _FEWEST_MACHINES:
        return
    totals = {path: sum(values.values()) or 1 for path, values in dumps.items()}
    least = _LEAST_SHARE if shares else _LEAST_SIZE
    largest: Dict[str, int] = {}
    for sizes in dumps.values():
        for name, size in sizes.items():
            largest[name] = max(size, largest.get(name, 0))
    for name in sorted(largest, key=lambda name: (-largest[name], name))[:_MOST_NAMES]:
        values = {path: sizes.get(name, 0) / (totals[path] if shares else 1) for path, sizes in dumps.items()}
        usual = median(values.values())
        for (path, value), score in zip(values.items(), scores(list(values.values()))):
            if abs(score) > STANDS_OUT and abs(value - usual) >= least:
                expected = Size(int(usual * (totals[path] if shares else 1)))
                yield OutlierRow(about, name, Size(dumps[path].get(name, 0)), expected, round(score, 1), path)
