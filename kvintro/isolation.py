# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process of ours must not load: it may be root's, and what it is asked about may be a stranger's.

This is called before anything but the standard library is imported, and so imports nothing else itself.
"""

from __future__ import annotations

import contextlib
import os
import site
import sys
from typing import Set


def disable_drgn_plugins() -> None:
    """Keep drgn from loading plugins when a program is set.

    drgn imports all that installed packages offer it and what the environment names: code that no report of
    ours needs, a fifth of the time that a report takes, and with root's rights. Both variables are
    documented by drgn.
    """
    os.environ["DRGN_DISABLE_PLUGINS"] = "*"
    os.environ.pop("DRGN_PLUGINS", None)


def narrow_search_path() -> None:
    """Take from Python's search path what the working directory and the environment put there.

    What remains is what ``python -I`` searches. Modules of this package are found by the package's own path,
    so that it may lie in such a directory itself.
    """
    unwanted = _outside() - _installed()
    sys.path[:] = [entry for entry in sys.path if entry and os.path.realpath(entry) not in unwanted]


def forget_paths_of_locales() -> None:
    """Take from the environment what names a locale by its path.

    argparse would have root read a catalogue of messages there. sudo does this, too; not all others do.
    """
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if "/" in os.environ.get(name, ""):
            del os.environ[name]


def may_more_than_its_user() -> bool:
    """Whether this process is root's, or has capabilities. Where that cannot be told, it may have."""
    try:
        with open("/proc/self/status", "rb") as file:
            sets = [int(line.split()[1], 16) for line in file if line.startswith((b"CapPrm", b"CapEff"))]
    except (OSError, ValueError, IndexError):
        return True
    return os.geteuid() == 0 or not sets or any(sets)


def _installed() -> Set[str]:
    """Where the standard library and installed packages lie, whoever else names it."""
    return {os.path.realpath(entry) for entry in (*site.getsitepackages(), os.path.dirname(os.__file__))}


def _outside() -> Set[str]:
    """The directories that ``python -I`` does not search, resolved."""
    found = []
    with contextlib.suppress(OSError):  # it was removed
        found.append(os.getcwd())
    # Empty entries of PYTHONPATH stand for the working directory.
    found += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if site.ENABLE_USER_SITE and site.USER_SITE:
        found.append(site.USER_SITE)
    return {os.path.realpath(entry) for entry in found}
