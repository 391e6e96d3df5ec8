# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a report to text, JSON, CSV, a picture or a page. Knows no drgn; strings of a dump come out inert."""

from __future__ import annotations

from typing import Iterator

from kvintro.errors import UsageError
from kvintro.model import Report, Stream
from kvintro.render.inert import InertStream, inert

FORMATS = ("text", "json", "csv", "svg", "html")


def render(report: Report, form: str, *, color: bool = False, width: int = 0) -> str:
    """A report in one of :data:`FORMATS` or as a ``map``, ending in a newline.

    :param color: use ANSI colours (text and map only).
    :param width: columns of the terminal (text and map only); 0 for no limit.
    :raises UsageError: this report has no such form.
    """
    # A renderer is loaded when it is used: start-up time counts.
    if form == "json":
        from kvintro.render.json import render_json

        return render_json(report)
    report = inert(report)
    if form == "csv":
        if not report.tables:
            raise UsageError(f"{report.command} is more than one table", "choose json, html or text")
        from kvintro.render.csv import render_csv

        return render_csv(report)
    if form == "html":
        from kvintro.render.html import render_html

        return render_html(report)
    if form in ("svg", "map"):
        if report.command != "layout":
            raise UsageError(f"{report.command} cannot be drawn", "only the layout can")
        if form == "svg":
            from kvintro.render.svg import layout_svg

            return layout_svg(report)
        from kvintro.render.map import map_text

        return map_text(report, color=color, width=width)
    from kvintro.render.text import render_text

    return render_text(report, color=color, width=width)


def render_stream(stream: Stream, form: str) -> Iterator[str]:
    """A stream in one of :data:`FORMATS`, a piece for each batch as it comes."""
    from kvintro.render.stream import stream_csv, stream_json, stream_text

    if form != "json":
        stream = InertStream(stream)
    if stream.command == "ptdump" and form == "text":
        from kvintro.render.ptdump import ptdump_text

        return ptdump_text(stream)
    writers = {"text": stream_text, "json": stream_json, "csv": stream_csv}
    if form not in writers:
        raise UsageError(f"{stream.command} has no form {form}", f"choose one of {', '.join(writers)}")
    return writers[form](stream)
