# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every exception that a user of kvintro can meet.

Each says in one line what happened and in another what to do about it. The command line prints the two
and no traceback; :attr:`KvintroError.exit_code` is what the process then ends with.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_SOURCE = 3
EXIT_PARTIAL = 4
EXIT_INTERRUPTED = 130


class KvintroError(Exception):
    """Something that a person can do something about.

    :param what: what happened, one line.
    :param remedy: what to do about it, one line; may be empty.
    """

    exit_code = EXIT_SOURCE

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


class UsageError(KvintroError):
    """The command line or an argument makes no sense."""

    exit_code = EXIT_USAGE


class SourceError(KvintroError):
    """The dump, the running kernel or the guest cannot be opened."""


class NoSuchSource(SourceError):
    """The file named with -c, -s, --btf or --vmcoreinfo is not there, or is no file."""


class NotADump(SourceError):
    """The file is there, but it is no dump of a kernel that kvintro reads."""


class WrongArchitecture(SourceError):
    """The kernel is of an architecture that kvintro does not know."""


class WrongVmlinux(SourceError):
    """The debuginfo given is not that of the kernel in the source."""


class WrongVmcoreinfo(SourceError):
    """The VMCOREINFO that was asked for is none, or is not that of the kernel in the source."""


class NotPermitted(SourceError):
    """The source exists, but this user may not read it (permission or lockdown)."""


class NoTypes(SourceError):
    """The types asked for are not there, or make no sense."""


class SymbolsMissing(SourceError):
    """Nothing leads to the kernel's symbols, and the command cannot do without."""


class NotWritten(KvintroError):
    """The report is made, but cannot be written to where it is wanted."""


class Unavailable(KvintroError):
    """One fact about the kernel cannot be read from this source.

    Raised by what reads facts and caught by what reports them: it becomes an
    :class:`~kvintro.model.Absent` with the same reason, and the rest of the report goes on.
    """


class NotInDump(Unavailable):
    """The memory exists on the machine but not in this source (excluded, truncated, offline)."""

    def __init__(self, address: int, size: int, *, physical: bool) -> None:
        kind = "physical" if physical else "virtual"
        super().__init__(
            f"{kind} memory {address:016x}-{address + size - 1:016x} is not in this source",
            "take the dump without page exclusion, or from its beginning to its end",
        )
        self.address = address
