# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keep untrusted code out of this process, which may run as root for another user.

This runs before any import outside the standard library, so it imports nothing else itself.
"""

from __future__ import annotations

import contextlib
import os
import site
import sys
from typing import Set


def disable_drgn_plugins() -> None:
    """Keep drgn from loading plugins when a program is set.

    drgn imports every plugin of installed packages and of the environment, with root's rights. No report
    needs them, and they take a fifth of a report's time. drgn documents both variables.
    """
    os.environ["DRGN_DISABLE_PLUGINS"] = "*"
    os.environ.pop("DRGN_PLUGINS", None)


def narrow_search_path() -> None:
    """Remove entries of the working directory and the environment from Python's search path.

    The rest is what ``python -I`` searches. Modules of this package are found by the package's own path, so
    the package may be in such a directory.
    """
    unwanted = _outside() - _installed()
    sys.path[:] = [entry for entry in sys.path if entry and os.path.realpath(entry) not in unwanted]


def forget_paths_of_locales() -> None:
    """Remove variables that name a locale by path from the environment.

    Otherwise argparse would read a message catalogue from there as root. sudo removes them; not every other
    such program does.
    """
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if "/" in os.environ.get(name, ""):
            del os.environ[name]


def may_more_than_its_user() -> bool:
    """Whether this process is root or has capabilities; True if that is unknown."""
    try:
        with open("/proc/self/status", "rb") as file:
            sets = [int(line.split()[1], 16) for line in file if line.startswith((b"CapPrm", b"CapEff"))]
    except (OSError, ValueError, IndexError):
        return True
    return os.geteuid() == 0 or not sets or any(sets)


def _installed() -> Set[str]:
    """Directories of the standard library and installed packages, even if others name them too."""
    return {os.path.realpath(entry) for entry in (*site.getsitepackages(), os.path.dirname(os.__file__))}


def _outside() -> Set[str]:
    """Resolved directories that ``python -I`` does not search."""
    found = []
    with contextlib.suppress(OSError):  # the working directory was removed
        found.append(os.getcwd())
    # Empty entries of PYTHONPATH mean the working directory.
    found += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if site.ENABLE_USER_SITE and site.USER_SITE:
        found.append(site.USER_SITE)
    return {os.path.realpath(entry) for entry in found}
