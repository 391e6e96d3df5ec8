# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns a report into text, JSON, CSV, a picture or a page.

Knows neither kernels nor drgn: its only input is reports. Strings of a dump come out harmless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterable, Iterator, Mapping, Protocol, cast

from kvintro.entry_points import FORMATS as FORMATS_GROUP
from kvintro.entry_points import added
from kvintro.errors import UsageError
from kvintro.model import Report, Stream
from kvintro.render.inert import InertStream, inert

if TYPE_CHECKING:
    from kvintro.reports.layout import LayoutReport

FORMATS = ("text", "json", "csv", "svg", "html")


class AddedFormat(Protocol):
    """An output format of another package. The entry point's name is the format's name.

    :ivar interface: ``1``.
    """

    interface: int

    def render(self, report: Report) -> str:
        """Render a report. Its strings have no control characters."""


def added_formats() -> Mapping[str, AddedFormat]:
    """Output formats of other packages by name."""
    return added(FORMATS_GROUP, ("render",), (*FORMATS, "map"))


def render(report: Report, form: str, *, color: bool = False, width: int = 0) -> str:
    """Render a report in one of :data:`FORMATS` or as a ``map``, ending in a newline.

    :param color: use ANSI colours (text and map only).
    :param width: columns of the terminal (text and map only); 0 for no limit.
    :raises UsageError: the report does not support this format.
    """
    return "".join(render_pieces(report, form, color=color, width=width))


def render_pieces(report: Report, form: str, *, color: bool = False, width: int = 0) -> Iterable[str]:
    """As :func:`render`, in pieces, because JSON can be long. Only the call itself raises errors."""
    if form != "json":
        return [_whole(report, form, color, width)]
    from kvintro.render.json import render_json

    return render_json(report)


def _whole(report: Report, form: str, color: bool, width: int) -> str:
    if form not in FORMATS and form in added_formats():
        return added_formats()[form].render(inert(report)).rstrip("\n") + "\n"
    # Imports inside functions shorten start-up: a run uses only one renderer.
    report = inert(report)
    if form == "csv":
        if not report.tables:
            raise UsageError(f"{report.command} has more than one table", "choose json, html or text")
        from kvintro.render.csv import render_csv

        return render_csv(report)
    if form == "html":
        from kvintro.render.html import render_html

        return render_html(report)
    if form in ("svg", "map"):
        if report.command != "layout":
            raise UsageError(f"{report.command} cannot be drawn", "only the layout can")
        layout = cast("LayoutReport", report)
        if form == "svg":
            from kvintro.render.svg import layout_svg

            return layout_svg(layout)
        from kvintro.render.map import map_text

        return map_text(layout, color=color, width=width)
    from kvintro.render.as_text import render_text

    return render_text(report, color=color, width=width)


def render_stream(stream: Stream, form: str) -> Iterator[str]:
    """Render a stream in one of :data:`FORMATS`, one piece per batch as it arrives.

    :raises UsageError: the stream does not support this format.
    """
    if form not in FORMATS:
        raise UsageError(f"{stream.command} cannot be written as {form}", f"choose {', '.join(FORMATS)}")
    from kvintro.render.stream import stream_csv, stream_json, stream_text

    if form != "json":
        stream = InertStream(stream)
    if stream.command == "ptdump" and form == "text":
        from kvintro.render.ptdump import ptdump_text

        return ptdump_text(stream)
    writers = {"text": stream_text, "json": stream_json, "csv": stream_csv}
    if form not in writers:
        raise UsageError(
            f"{stream.command} cannot be written as {form}", f"choose one of {', '.join(writers)}"
        )
    return writers[form](stream)
