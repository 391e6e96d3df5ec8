# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make ``kvintro/methods.py``: each command as a method with a real signature, from the commands' parsers.

``make docs`` runs this; tests/unit/test_generated.py fails if the file is out of date.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvintro.commands import ALIASES, InputPath, command_names, load_command, process  # noqa: E402
from tools.gen_schemas import DOCUMENTS, load  # noqa: E402

TARGET = ROOT / "kvintro" / "methods.py"
#: Commands that need the whole terminal are not methods; k.read returns bytes; k.convert takes -o's file;
#: survey asks no kernel that is open.
NOT_METHODS = {"browse", "shell", "read", "convert", "survey"}
#: Commands in which an option decides which tables there are.
VARYING = {"pages", "read"}
_HEAD = '''\
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command as a method. Made by ``tools/gen_methods.py`` from the commands' parsers; do not edit."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Iterable, Literal, Mapping, Optional, Sequence, Union

import drgn

from kvintro.answers import Answer, Listing

if TYPE_CHECKING:
{imports}

#: What stands for an address or a number: a string is taken as on the command line.
Word = Union[int, str, drgn.Object, drgn.Symbol]
Words = Union[Word, Iterable[Word]]
'''
_CLASS = '''

class Commands:
    """The commands. Options that are None or False are left at the command's default.

    Where the command line would end with status 2 or 3, a :class:`kvintro.errors.KvintroError` is raised.
    """

    def _answer(self, kind: Any, command: str, values: Sequence[Any], options: Mapping[str, Any]) -> Any:
        raise NotImplementedError
'''


def rows_of(command: str) -> Dict[str, List[str]]:
    """The row classes of each table of a command, as ``module:Class``."""
    return (
        {key: list(rows) for key, rows in DOCUMENTS[command].tables.items()} if command in DOCUMENTS else {}
    )


def class_name(command: str) -> str:
    """The name of a command's answer."""
    return f"{command.capitalize()}Answer"


def is_report(command: str) -> bool:
    """Whether a command's method returns an Answer. Only a list on standard input makes a Stream."""
    return "Report" in load_command(command).run.__annotations__["return"]


class Names:
    """The row classes that are imported, each under a unique name."""

    def __init__(self) -> None:
        self._by_path: Dict[str, str] = {}

    def of(self, path: str) -> str:
        """The name of a class in the generated file."""
        if path not in self._by_path:
            module, name = load(path).__module__, load(path).__name__
            taken = set(self._by_path.values())
            self._by_path[path] = (
                name if name not in taken else f"{module.rsplit('.', 1)[-1].capitalize()}{name}"
            )
        return self._by_path[path]

    def imports(self) -> str:
        """The import statements."""
        lines = []
        for path, name in self._by_path.items():
            module, original = load(path).__module__, load(path).__name__
            lines.append(f"    from {module} import {original}" + (f" as {name}" if name != original else ""))
        return "\n".join(lines)


def answer_class(command: str, names: Names) -> str:
    """The class of a command's answer, with the types of its tables."""
    tables = rows_of(command)
    typed = {key: names.of(rows[0]) for key, rows in tables.items() if len(rows) == 1}
    first = next(iter(tables), None)
    row = typed.get(first, "Any") if first and command not in VARYING else "Any"
    lines = [
        "",
        "",
        f'class {class_name(command)}(Answer["{row}"]):'
        if row != "Any"
        else f"class {class_name(command)}(Answer[Any]):",
        f'    """What :meth:`Commands.{command}` returns."""',
    ]
    if typed:
        lines += ["", "    if TYPE_CHECKING:"]
        for key, name in typed.items():
            lines += ["", "        @property", f"        def {key}(self) -> Sequence[{name}]: ..."]
    return "\n".join(lines)


def value_type(action: argparse.Action) -> str:
    """The Python type of an argument's or option's value."""
    if action.choices:
        return f"Literal[{', '.join(map(repr, action.choices))}]"
    if action.type is InputPath:
        return 'Union[str, "PathLike[str]"]'
    if action.type is process:
        return "Union[int, str]"
    if action.type is not None:
        return "int"
    return "Word" if action.metavar in ("ADDR", "VALUE", "PAGE") else "str"


def help_of(action: argparse.Action) -> str:
    """The help text of an argument, for a docstring."""
    text = (action.help or "") % {**vars(action), "prog": "kvintro"}
    text = text.replace("\\", "\\\\").rstrip(".")
    return f"False: {text}" if action.const is False else text


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


class Signature:
    """The parameters of a command's method."""

    def __init__(self, command: str) -> None:
        parser = argparse.ArgumentParser(add_help=False)
        load_command(command).configure(parser)
        self.places: List[str] = []
        self.values: List[str] = []
        self.options: List[str] = []
        self.keys: List[str] = []
        self.about: List[str] = []
        seen: Set[str] = set()
        for action in parser._actions:
            if action.default == argparse.SUPPRESS and action.option_strings:
                continue  # this decides only how the command line prints
            if action.dest in seen:
                continue
            seen.add(action.dest)
            (self._option if action.option_strings else self._place)(action)
            if action.help and action.help != argparse.SUPPRESS:
                self.about.append(f":param {action.dest}: {help_of(action)}.")

    def _place(self, action: argparse.Action) -> None:
        kind = value_type(action)
        if action.nargs in ("+", "*"):
            many = "Words" if kind == "Word" else f"Union[{kind}, Iterable[{kind}]]"
            self.places.append(f"*{action.dest}: {many}")
            self.values.append(f"*{action.dest}")
        elif action.nargs == "?":
            self.places.append(f"{action.dest}: Optional[{kind}] = None")
            self.values.append(f"*(() if {action.dest} is None else ({action.dest},))")
        else:
            self.places.append(f"{action.dest}: {kind}")
            self.values.append(action.dest)

    def _option(self, action: argparse.Action) -> None:
        if action.nargs == 0:
            self.options.append(f"{action.dest}: bool = {action.default}")
        else:
            self.options.append(f"{action.dest}: Optional[{value_type(action)}] = None")
        self.keys.append(action.dest)

    def text(self) -> str:
        """The text between the parentheses."""
        star = ["*"] if self.options and not any(place.startswith("*") for place in self.places) else []
        return ", ".join(["self", *self.places, *star, *self.options])


def method(name: str, command: str) -> str:
    """The source of one method."""
    signature = Signature(command)
    report = is_report(command)
    kind = class_name(command) if report else "Listing"
    own = name == command or command in NOT_METHODS
    about = [_sentence(load_command(command).HELP)] if own else [f"As :meth:`{command}`."]
    if own and signature.about:
        about += ["", *signature.about]
    values = "".join(f"{value}, " for value in signature.values)
    options = ", ".join(f'"{key}": {key}' for key in signature.keys)
    # The alias decides how plain numbers are interpreted, so it is passed on.
    return "\n".join(
        [
            "",
            f"    def {name}({signature.text()}) -> {kind}:",
            '        """' + "\n".join(_wrapped(about)) + ('"""' if len(about) == 1 else '\n        """'),
            f'        found: {kind} = self._answer({kind}, "{name}", ({values}), {{{options}}})',
            "        return found",
        ]
    )


def _wrapped(lines: Sequence[str]) -> List[str]:
    out: List[str] = []
    for number, line in enumerate(lines):
        if not line:
            out.append("")
            continue
        indent = "        "
        hanging = indent + ("    " if line.startswith(":") else "")
        parts = textwrap.wrap(line, 105, initial_indent=indent, subsequent_indent=hanging)
        if number == 0:
            parts[0] = parts[0].lstrip()
        out += parts
    return out


def source() -> str:
    """The whole file, before formatting."""
    names = Names()
    commands = [name for name in command_names() if name not in ("browse", "shell")]
    classes = "\n".join(answer_class(command, names) for command in commands if is_report(command))
    spelled = [(name, name) for name in commands if name not in NOT_METHODS] + list(ALIASES.items())
    methods = "\n".join(method(name, command) for name, command in spelled)
    return _HEAD.format(imports=names.imports()) + classes + "\n" + _CLASS + methods + "\n"


def _formatted(text: str) -> str:
    for arguments in (["check", "--fix-only", "--select", "I", "-q"], ["format", "-q"]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return text


def main(target: Optional[Path] = None) -> None:
    """Write the file."""
    (target or TARGET).write_text(_formatted(source()))


if __name__ == "__main__":
    main()
