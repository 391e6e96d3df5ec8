# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dialogs: a line of input, a list to choose from, and a message."""

from __future__ import annotations

from typing import ClassVar, List, Optional, Sequence, TypeVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

Result = TypeVar("Result")


class Dialog(ModalScreen[Optional[Result]]):
    """A dialog. Escape and Ctrl-C close it."""

    BINDINGS: ClassVar[List[BindingType]] = [
        Binding("escape", "close", "Cancel"),
        Binding("ctrl+c", "close", "Cancel", priority=True),
    ]

    def close(self, result: Optional[Result]) -> None:
        """Close it. It may get more keys after that, which would close the screen below it, too."""
        if self in self.app.screen_stack:
            self.dismiss(result)

    def action_close(self) -> None:
        """Close it without a result."""
        self.close(None)


class Ask(Dialog[str]):
    """One line of input at the bottom. Escape cancels it."""

    DEFAULT_CSS = """
    Ask { align: left bottom; background: $background 0%; }
    Ask Vertical { height: auto; background: $surface; border-top: solid $primary; }
    Ask Static { color: $text-muted; height: auto; padding: 0 1; }
    Ask Input, Ask Input:focus { border: none; height: 1; padding: 0 1; background: $boost; }
    """

    def __init__(self, title: str, value: str = "") -> None:
        super().__init__()
        self._title = title
        self._value = value

    def compose(self) -> ComposeResult:
        """The title and the line."""
        with Vertical():
            yield Static(Text(self._title), markup=False)
            yield Input(self._value)

    def on_mount(self) -> None:
        """Focus the line."""
        self.set_focus(self.query_one(Input))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter."""
        self.close(event.value)


class Choose(Dialog[int]):
    """A list. Returns the number of the chosen line."""

    DEFAULT_CSS = """
    Choose { align: center middle; background: $background 40%; }
    Choose Vertical { width: auto; min-width: 30; max-width: 90%; height: auto; max-height: 80%;
        background: $surface; border: solid $primary; }
    Choose Static { padding: 0 1; width: auto; }
    Choose OptionList, Choose OptionList:focus { width: auto; min-width: 28; height: auto; max-height: 20;
        border: none; }
    """

    def __init__(self, title: str, lines: Sequence[str]) -> None:
        super().__init__()
        self._title = title
        self._lines = lines

    def compose(self) -> ComposeResult:
        """The title and the list."""
        with Vertical():
            yield Static(Text(self._title), markup=False)
            yield OptionList(*(Option(Text(line)) for line in self._lines))

    def on_mount(self) -> None:
        """Focus the list."""
        self.set_focus(self.query_one(OptionList))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter."""
        self.close(event.option_index)


class Message(Dialog[None]):
    """A text to read. Any key closes it."""

    DEFAULT_CSS = """
    Message { align: center middle; background: $background 40%; }
    Message Static { width: auto; max-width: 90%; height: auto; max-height: 90%; padding: 1 2;
        background: $surface; border: solid $primary; }
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """The text."""
        yield Static(Text(self._text), markup=False)

    def check_consume_key(self, key: str, character: Optional[str]) -> bool:
        """Whether a key is for the text itself: all are."""
        return True

    def on_key(self) -> None:
        """Any key."""
        self.close(None)

    def on_click(self) -> None:
        """A click."""
        self.close(None)
