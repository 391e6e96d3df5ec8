#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make docs/man/kvintro.1 and completions/ from the parser of the command line.

    tools/gen_man.py [--check]

Needs shtab (pip install '.[docs]') for the completions. With --check nothing is written, and the exit
status is 1 if a file is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvintro import __version__  # noqa: E402
from kvintro.arch.x86_64 import ARCHITECTURE  # noqa: E402
from kvintro.parser import make_parser  # noqa: E402
from kvintro.regions import regions_of  # noqa: E402

#: Environment variables that the command line and the pager read.
_ENVIRONMENT = {
    "KVINTRO_CORE": "the dump to read if the command line names no source",
    "KVINTRO_PAGER, PAGER": "the program that shows long text; cat for none. root gets less",
    "COLUMNS": "the width of the terminal",
    "NO_COLOR": "if it is not empty, no colour unless --color always is given",
    "TERM, COLORTERM": "how many colours the terminal has: 256 or 16; none if TERM is dumb",
    "LC_ALL, LC_CTYPE, LANG": "in the locale C, all text is ASCII",
}
_SEE = """\
.SH FILES
.TP
.I /proc/kcore
the memory of the running kernel, which needs root
.SH SEE ALSO
.BR drgn (1),
.BR crash (8),
.BR makedumpfile (8),
.BR proc (5)
"""


def man() -> str:
    """The manual page."""
    parser = make_parser()
    out = [
        f'.TH KVINTRO 1 "" "kvintro {__version__}" "User Commands"',
        ".SH NAME",
        "kvintro \\- shows the Linux kernel's virtual address space as it really is",
        ".SH SYNOPSIS",
        ".B kvintro",
        "[\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]",
        ".SH DESCRIPTION",
    ]
    epilog, _, status = (parser.epilog or "").partition("exit status:")
    out.append(_prose(epilog))
    out.append(".SH OPTIONS")
    out.append("These may stand before the command or behind it.")
    shared = list(_options(parser))
    out += shared
    out.append(".SH COMMANDS")
    for name, sub, aliases in _commands(parser):
        title = ", ".join((name, *aliases))
        out.append(f".SS {_plain(title)}")
        out.append(_prose(f"{(sub.description or '')[:1].upper()}{(sub.description or '')[1:]}."))
        out += [".PP", f".B {_plain(_usage(sub))}"]
        own = [text for text in _options(sub) if text not in shared]
        out += own
        if sub.examples:
            out += [".PP", ".nf", *(_plain(line) for line in sub.examples.rstrip("\n").split("\n")), ".fi"]
    out.append(".SH ENVIRONMENT")
    out += [f".TP\n.B {name}\n{_prose(what)}" for name, what in _ENVIRONMENT.items()]
    out.append(".SH EXIT STATUS")
    for part in status.split(","):
        code, _, meaning = part.strip().partition(" ")
        out.append(f".TP\n.B {code}\n{_prose(meaning)}")
    out.append(_SEE.rstrip("\n"))
    return "\n".join(out) + "\n"


def _commands(parser: argparse.ArgumentParser) -> "Iterator[tuple[str, Any, List[str]]]":
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names: Dict[int, List[str]] = {}
            for name, sub in action.choices.items():
                names.setdefault(id(sub), []).append(name)
            for (name, *aliases), sub in zip(
                names.values(), {id(s): s for s in action.choices.values()}.values()
            ):
                yield name, sub, aliases


def _usage(parser: argparse.ArgumentParser) -> str:
    """Name and arguments of a command, without its options."""
    words = [parser.prog]
    for action in parser._actions:
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            name = str(action.metavar or action.dest)
            words.append(
                {"?": f"[{name}]", "*": f"[{name}...]", "+": f"{name}..."}.get(str(action.nargs), name)
            )
    return " ".join(words)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        value = ""
        if action.nargs != 0:
            value = str(
                action.metavar
                or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
            )
        if action.option_strings:
            names = ", ".join(f"\\fB{_plain(name)}\\fR" for name in action.option_strings)
            head = f"{names} \\fI{_plain(value)}\\fR" if value else names
        else:
            head = f"\\fI{_plain(value)}\\fR"
        yield f".TP\n{head}\n{_prose(action.help or '')}"


def _prose(text: str) -> str:
    """Paragraphs."""
    parts = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    return "\n.PP\n".join(_plain(part) for part in parts)


def _plain(text: str) -> str:
    """Text with troff's special characters escaped."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text)


def completions() -> Dict[str, str]:
    """Completion for each shell, by file."""
    import shtab

    parser = make_parser()
    for action in _all_actions(parser):
        if action.metavar in ("CORE", "VMLINUX", "FILE", "A", "B"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if action.metavar == "REGION":
            action.choices = [region.key for region in regions_of(ARCHITECTURE)]
    return {
        "completions/kvintro.bash": shtab.complete(parser, shell="bash"),
        "completions/_kvintro": shtab.complete(parser, shell="zsh"),
    }


def _all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in {id(s): s for s in action.choices.values()}.values():
                yield from _all_actions(sub)
        else:
            yield action


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if something is out of date")
    check = parser.parse_args().check
    stale = 0
    for name, text in {"docs/man/kvintro.1": man(), **completions()}.items():
        path = ROOT / name
        if not path.exists() or path.read_text() != text:
            stale += 1
            print(f"{'stale' if check else 'made'}: {name}")
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    return int(bool(check and stale))


if __name__ == "__main__":
    sys.exit(main())
