# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interfaces with which a package adds a command, a region, a check or an output format to kvintro.

Each addition is an object named by an entry point of the package. Its ``interface`` is the version of the
interface. docs/extending.md has an example.
"""

from __future__ import annotations

from kvintro.commands import AddedCommand
from kvintro.entry_points import INTERFACES
from kvintro.kernels import Kernel
from kvintro.model import Absent, AddressRange, Column, Located, Placement, Report, Table
from kvintro.queries.audit import AddedCheck
from kvintro.queries.audit.verdict import Finding, Verdict
from kvintro.regions import AddedRegion, Region
from kvintro.render import AddedFormat

__all__ = (
    "INTERFACES",
    "Absent",
    "AddedCheck",
    "AddedCommand",
    "AddedFormat",
    "AddedRegion",
    "AddressRange",
    "Column",
    "Finding",
    "Kernel",
    "Located",
    "Placement",
    "Region",
    "Report",
    "Table",
    "Verdict",
)
