# SPDX-License-Identifier: LGPL-2.1-or-later
"""The SVG drawing and the map in the terminal, of made-up kernels."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from typing import Any, List, Mapping, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.browse.mapping import map_lines
from kvintro.browse.stretches import boxes_of_layout
from kvintro.errors import UsageError
from kvintro.model import Address, Displacement, Report, Size, Table
from kvintro.render import render
from kvintro.render.drawing import placed_rows, spaces, spread, weight
from kvintro.render.inert import inert
from kvintro.render.svg import layout_svg
from kvintro.reports.explain import explain
from kvintro.reports.layout import RegionRow, layout
from kvintro.text import displacement_text
from tests.synthetic import kernel_of, vmcoreinfo
from tests.unit.test_layout import VMALLOC, VMEMMAP, made_up

SVG = "{http://www.w3.org/2000/svg}"
Layout = Report[Tuple[Table[RegionRow]], Mapping[str, Any]]
HOSTILE = "<script>alert(1)</script>\x1b[31m\x00&\"'"


@pytest.fixture(params=[4, 5])
def report(request: pytest.FixtureRequest) -> Layout:
    levels = request.param
    bases = {
        "NUMBER(VMALLOC_START)": hex(VMALLOC[levels]),
        "SYMBOL(vmemmap)": f"{VMEMMAP[levels]:x}",
        "KERNELOFFSET": "2000000",
    }
    return layout(kernel_of(made_up(levels), vmcoreinfo(levels, more=bases)))


def texts(svg: str) -> List[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_row_is_drawn(report: Layout) -> None:
    found = texts(layout_svg(report))
    for row in placed_rows(report):
        assert f"{row.start:016x}" in found
        assert any(row.name in text for text in found)


def test_bands_follow_each_other(report: Layout) -> None:
    root = ElementTree.fromstring(layout_svg(report))
    bands = [e for e in root.iter(f"{SVG}rect") if e.get("class") in ("band", "hole") and e.get("x") == "156"]
    assert len(bands) == len(placed_rows(report))
    for above, below in zip(bands, bands[1:]):
        assert float(above.get("y", "")) + float(above.get("height", "")) == pytest.approx(
            float(below.get("y", "")), abs=0.2
        )


def test_links_only_where_there_are_sections(report: Layout) -> None:
    assert "<a " not in layout_svg(report)
    root = ElementTree.fromstring(f"<div>{layout_svg(report, links='#region-')}</div>")
    assert len(list(root)) == 2
    targets = {a.get("href") for a in root.iter(f"{SVG}a")}
    assert targets == {f"#region-{row.key}" for row in placed_rows(report) if row.kind == "region"}
    assert all(a.get("aria-label") for a in root.iter(f"{SVG}a"))


def test_shared_pages_are_drawn_apart(report: Layout) -> None:
    """KASAN maps terabytes to one page of zeros; its own memory is a bar of its own."""
    (table,) = report.tables
    mapped, shared = Size(8 << 40), Size((8 << 40) - (14 << 20))
    rows = [
        dataclasses.replace(row, mapped=mapped, shared=shared) if row.key == "vmalloc" else row
        for row in table.rows
    ]
    kasan = dataclasses.replace(report, tables=(dataclasses.replace(table, rows=rows),))
    in_text = [line for line in render(kasan, "map").splitlines() if "14 MB mapped + 8 TB shared" in line]
    assert len(in_text) == 1 and 0 < in_text[0].count("█") < in_text[0].count("▒")
    assert "▒▒▒ mapped to shared pages" in render(kasan, "map")
    assert "▒" not in render(report, "map")
    vmalloc = next(box for box in boxes_of_layout(kasan) if box.key == "vmalloc")
    for width, text in ((60, "14 MB mapped + 8 TB shared"), (38, "14 MB mapped")):
        _, second, *_ = map_lines([vmalloc], width)
        assert second.text.endswith(f" {text}") and second.width <= width
    drawn = layout_svg(kasan)
    assert any("14 MB mapped + 8 TB shared" in text for text in texts(drawn))
    rects = ElementTree.fromstring(drawn).iter(f"{SVG}rect")
    bars = {
        e.get("class"): float(e.get("width", "")) for e in rects if e.get("class") in ("shared", "mapped")
    }
    assert 0 < bars["mapped"] < bars["shared"]


def test_strings_stay_text(report: Layout) -> None:
    rows = [
        dataclasses.replace(row, name=HOSTILE, note=HOSTILE, reason=HOSTILE) for row in report.tables[0].rows
    ]
    assert report.kernel is not None
    hostile = dataclasses.replace(
        report,
        tables=(dataclasses.replace(report.tables[0], rows=rows),),
        head=(HOSTILE,),
        kernel=dataclasses.replace(report.kernel, release=HOSTILE),
    )
    for links in ("", "#region-"):
        root = ElementTree.fromstring(f"<div>{layout_svg(inert(hostile), links=links)}</div>")
        assert not list(root.iter(f"{SVG}script"))
        assert not list(root.iter("script"))
    drawn = render(hostile, "map")
    assert "\x1b" not in drawn
    assert "\x00" not in drawn


def test_true_scale(report: Layout) -> None:
    """Displacements on the scale equal those in the rows."""
    found = spaces(placed_rows(report))
    by_key = {row.key: row for row in placed_rows(report)}
    assert [bar.key for bar in found[0].bars] == ["direct_map", "vmalloc", "vmemmap"]
    for room in found:
        for bar in room.bars:
            assert bar.slide == by_key[bar.key].slide
            assert (bar.here[0] - bar.default[0]) * room.size == pytest.approx(
                bar.slide, rel=1e-6, abs=room.size / 1e9
            )


@pytest.mark.parametrize("width", [0, 60, 80, 100, 140, 200])
def test_the_map_fits(report: Layout, width: int) -> None:
    drawn = render(report, "map", width=width)
    below_head = drawn.split("\n\n", 1)[1]
    boxes = [line for line in below_head.splitlines() if re.search("[│╎┌├└]", line)]
    edges = {line.find("│") for line in boxes if "│" in line}
    assert len(edges) == 1
    if width >= 64:
        assert max(map(len, boxes)) <= width
    for row in placed_rows(report):
        assert f"{row.start:016x}" in drawn
        if row.slide and width != 60:
            # All its text is present, beside the box or in it.
            assert f"moved by {displacement_text(row.slide)}" in drawn
            assert f"default {row.default_start:016x}" in drawn


def test_nothing_else_is_drawn() -> None:
    for form in ("svg", "map"):
        with pytest.raises(UsageError):
            render(explain(None), form)


@given(st.lists(st.floats(0, 500), max_size=8).map(sorted))
def test_labels_do_not_overlap(wanted: List[float]) -> None:
    found = spread(wanted, 30, 0, 500)
    assert all(b - a >= 29.999 for a, b in zip(found, found[1:]))
    assert not found or found[-1] <= 500


@given(st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_larger_is_never_drawn_smaller(a: int, b: int) -> None:
    if a <= b:
        assert 0 <= weight(a) <= weight(b) <= 1


def test_rows_without_anything() -> None:
    full: Any = layout(kernel_of(made_up(4), vmcoreinfo()))
    empty: Any = dataclasses.replace(
        full,
        tables=(dataclasses.replace(explain(None).tables[0], rows=()),),
    )
    ElementTree.fromstring(layout_svg(empty))
    assert render(empty, "map")


def test_regions_inside_another_one(report: Layout) -> None:
    """arm64's image is in vmalloc, at a random place."""
    (table,) = report.tables
    around = next(row for row in table.rows if row.key == "vmalloc")
    image = next(row for row in table.rows if row.key == "kernel_image")
    assert around.start is not None and around.size is not None
    start, size, slide = Address(around.start + (3 << 40)), Size(32 << 20), Displacement(2 << 40)
    image = dataclasses.replace(
        image,
        parent="vmalloc",
        start=start,
        end=Address(start + size - 1),
        size=size,
        slide=slide,
        default_start=Address(start - slide),
    )
    rows = [image if row.key == "kernel_image" else row for row in table.rows]
    nested = dataclasses.replace(report, tables=(dataclasses.replace(table, rows=rows),))
    lines = render(nested, "map", width=100).splitlines()
    at = next(number for number, line in enumerate(lines) if "│ │ kernel image" in line)
    assert lines[at - 1].startswith(f"{start:016x}  │ ┌")
    end = next(line for line in lines[at:] if "│ └" in line)
    assert end.startswith(f"{start + size - 1:016x}")
    widths = {len(line) for line in lines if line[18:19] in ("├", "┌") or "│ └" in line or "│ ┌" in line}
    assert len(widths) == 1
    drawn = ElementTree.fromstring(f"<div>{layout_svg(nested, links='#region-')}</div>")
    (link,) = (a for a in drawn.iter(f"{SVG}a") if a.get("href") == "#region-kernel_image")
    (band,) = (e for e in link.iter(f"{SVG}rect") if e.get("class") == "band")
    assert float(band.get("x", "")) > 156
    assert f"{start:016x}" in texts(layout_svg(nested))
    (space,) = (one for one in spaces(placed_rows(nested)) if one.title == "kernel image in vmalloc")
    (bar,) = space.bars
    assert (bar.here[0] - bar.default[0]) * space.size == pytest.approx(slide, rel=1e-6)
