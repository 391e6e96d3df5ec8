# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes a result to a file, a pager or standard output, and determines the exit code."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import Iterable, TextIO, Union

from kvintro import streams
from kvintro.errors import EXIT_NEGATIVE, EXIT_OK, EXIT_PARTIAL, NotWritten, UsageError
from kvintro.model import Raw, Report, Stream
from kvintro.output import refuse_inputs, written_file
from kvintro.pager import show_paged
from kvintro.render import render_pieces, render_stream


def exit_code(report: Union[Report, Stream]) -> int:
    """Exit code of the process after this report. Only this function determines it."""
    if report.partial:
        return EXIT_PARTIAL
    return EXIT_NEGATIVE if report.negative else EXIT_OK


_AS_USER = "choose another file; under sudo it is written as the user who called sudo"
_REMEDIES = {
    errno.ENOSPC: "make room there, or choose another file",
    errno.EDQUOT: "make room there, or choose another file",
    errno.EISDIR: "name a file in it",
    errno.ENOENT: "name a file in a directory that exists",
    errno.ENOTDIR: "name a file in a directory that exists",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _AS_USER),
}


def deliver(result: Union[Report, Stream], args: argparse.Namespace, *, paged: bool = False) -> int:
    """Write a result to where the command line says, and return the exit code.

    :param paged: use a pager if the text is longer than the terminal.
    :raises NotWritten: the result cannot be written there.
    :raises UsageError: the result would overwrite an input file.
    """
    refuse_inputs(args)
    try:
        return _deliver(result, args, paged)
    except BrokenPipeError:
        raise
    except OSError as error:
        place = "standard output" if args.output is None else args.output
        remedy = _REMEDIES.get(error.errno or 0, "choose another file")
        raise NotWritten(f"{place}: {error.strerror or error}", remedy) from error


def _deliver(result: Union[Report, Stream], args: argparse.Namespace, paged: bool) -> int:
    if isinstance(result, Raw):
        return _deliver_bytes(result, args)
    if args.output is not None:
        parts = _parts(result, args.format, color=False, width=0)
        with written_file(args.output) as file:
            file.writelines(parts)
        if getattr(args, "bug_report", False):  # to be read before it is sent
            _write(_parts(result, args.format, color=False, width=0), sys.stdout, args.format)
    else:
        color, width = _color(args.color, sys.stdout), streams.terminal_width(sys.stdout)
        parts = _parts(result, args.format, color=color, width=width)
        if paged and isinstance(result, Report) and args.format in ("text", "map") and not args.no_pager:
            parts = list(parts)
            if show_paged(streams.in_its_colors("".join(parts)), sys.stdout):
                return exit_code(result)
        _write(parts, sys.stdout, args.format)
    return exit_code(result)


def _deliver_bytes(result: Raw, args: argparse.Namespace) -> int:
    if args.format != "text":
        raise UsageError(f"--raw cannot be combined with {args.format}", f"omit --raw or {args.format}")
    if args.output is not None:
        with written_file(args.output) as file:
            file.buffer.writelines(result.pieces)
    elif sys.stdout.isatty():
        raise UsageError("bytes cannot be written to a terminal", "give -o FILE")
    else:
        for piece in result.pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    return exit_code(result)


def _write(parts: Iterable[str], file: TextIO, form: str) -> None:
    for part in parts:
        file.write(streams.fitting(streams.in_its_colors(part), file, form))
        file.flush()


def _parts(result: Union[Report, Stream], form: str, *, color: bool, width: int) -> Iterable[str]:
    """The output in pieces, as they become available. A report in an unknown format raises at once."""
    if isinstance(result, Stream):
        return render_stream(result, form)
    return render_pieces(result, form, color=color, width=width)


def _color(choice: str, stream: TextIO) -> bool:
    if choice != "auto":
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
