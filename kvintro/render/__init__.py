# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a report to text, JSON or CSV. Knows no drgn; strings of a dump come out inert."""

from __future__ import annotations

from typing import Iterator

from kvintro.model import Report, Stream

FORMATS = ("text", "json", "csv")


def render(report: Report, form: str, *, color: bool = False, width: int = 0) -> str:
    """A report in one of :data:`FORMATS`, ending in a newline.

    :param color: use ANSI colours (text only).
    :param width: columns of the terminal (text only); 0 for no limit.
    """
    # A renderer is loaded when it is used: start-up time counts.
    if form == "json":
        from kvintro.render.json import render_json

        return render_json(report)
    if form == "csv":
        from kvintro.render.csv import render_csv

        return render_csv(report)
    from kvintro.render.text import render_text

    return render_text(report, color=color, width=width)


def render_stream(stream: Stream, form: str) -> Iterator[str]:
    """A stream in one of :data:`FORMATS`, a piece for each batch as it comes."""
    from kvintro.render.stream import stream_csv, stream_json, stream_text

    if stream.command == "ptdump" and form == "text":
        from kvintro.render.ptdump import ptdump_text

        return ptdump_text(stream)
    return {"text": stream_text, "json": stream_json, "csv": stream_csv}[form](stream)
