# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a report to text, JSON or CSV. Knows no drgn; strings of a dump come out inert."""

from __future__ import annotations

from kvintro.model import Report

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
