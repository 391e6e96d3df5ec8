# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every exception that a user of kvintro can meet.

Each has one line that says what happened and one that says what to do about it. The command line prints
these two lines and no traceback. :attr:`KvintroError.exit_code` is the exit status of the process.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_SOURCE = 3
EXIT_PARTIAL = 4
EXIT_INTERRUPTED = 130


class KvintroError(Exception):
    """An error that the user can do something about.

    :param what: what happened, in one line.
    :param remedy: what to do about it, in one line; may be empty.
    """

    exit_code = EXIT_SOURCE

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


class UsageError(KvintroError):
    """The command line or an argument is wrong."""

    exit_code = EXIT_USAGE


class SourceError(KvintroError):
    """The dump, the running kernel or the guest cannot be opened."""


class NoSuchSource(SourceError):
    """The file named with -c, -s, --btf or --vmcoreinfo does not exist, or is not a regular file."""


class NotADump(SourceError):
    """The file exists, but it is not a dump that kvintro can read."""


class WrongArchitecture(SourceError):
    """kvintro does not support the kernel's architecture."""


class WrongVmlinux(SourceError):
    """The given debuginfo does not belong to the kernel in the source."""


class WrongVmcoreinfo(SourceError):
    """The given VMCOREINFO is not valid, or does not belong to the kernel in the source."""


class NotPermitted(SourceError):
    """The source exists, but this user cannot read it (permissions or lockdown).

    :ivar by: what helps on the command line: the option ``--sudo``, the program ``sudo``, or nothing.
    """

    def __init__(self, what: str, remedy: str = "", by: str = "") -> None:
        super().__init__(what, remedy)
        self.by = by


class NoTypes(SourceError):
    """The requested types do not exist, or are damaged."""


class NotWritten(KvintroError):
    """The report is complete, but cannot be written to its destination."""


class Unavailable(KvintroError):
    """One fact about the kernel cannot be read from this source.

    Code that reads facts raises it. Code that reports them catches it, shows the reason instead of the value,
    and goes on with the rest of the report.
    """


class NotInDump(Unavailable):
    """The memory exists on the machine but not in this source (excluded, truncated, offline)."""

    def __init__(self, address: int, size: int, *, physical: bool) -> None:
        kind = "physical" if physical else "virtual"
        super().__init__(
            f"{kind} memory {address:016x}-{address + size - 1:016x} is not in this source",
            "take a complete dump, without page exclusion",
        )
        self.address = address
