# SPDX-License-Identifier: LGPL-2.1-or-later
"""The made-up architecture's part of the rules of ``check``: it has no special cases."""

from __future__ import annotations

from typing import Mapping, Sequence

from kvintro.kernels import Kernel, Region
from kvintro.model import AddressRange
from kvintro.queries.audit.running import KcoreStart
from kvintro.queries.audit.verdict import Check, Finding, Said, Tally

CHECKS: Mapping[str, Sequence[Check]] = {}
SAID: Sequence[Said] = ()
KCORE: Sequence[KcoreStart] = ()
LOW_CODE = 0


def unexplained(
    kernel: Kernel, region: Region, findings: Sequence[Finding], tally: Tally
) -> Sequence[Finding]:
    """See :data:`kvintro.queries.audit.rights.Unexplained`."""
    return findings


def rounded(kernel: Kernel, region: Region) -> Sequence[AddressRange]:
    """Nowhere."""
    return ()
