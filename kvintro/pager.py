# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shows text that is longer than the terminal in the user's pager."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import TextIO

from kvintro.streams import encoded


def show_paged(text: str, stream: TextIO) -> bool:
    """Show text in a pager, if the stream is a terminal and the text does not fit on it.

    ``$KVINTRO_PAGER`` or ``$PAGER`` names the pager (``cat`` or an empty value for none). root gets less,
    because root may not want to run what a variable names.

    :return: whether the text was shown; if not, the caller has to write it.
    """
    if not stream.isatty() or text.count("\n") < shutil.get_terminal_size().lines:
        return False
    command = shlex.split(os.environ.get("KVINTRO_PAGER", os.environ.get("PAGER", "less")))
    if os.geteuid() == 0:
        command = ["less"]
    if command[:1] in ([], ["cat"]):
        return False
    # Pass colours through, do not page what fits, and forbid shells and editors from within less.
    environment = {"LESS": "FRX", **os.environ, "LESSSECURE": "1"}
    stream.flush()
    try:
        pager = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stream, env=environment)
    except OSError:
        return False
    assert pager.stdin is not None
    try:
        pager.stdin.write(encoded(text, stream))
        pager.stdin.close()
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # the user quit before the end
    while True:
        try:
            pager.wait()
            return True
        except KeyboardInterrupt:
            continue  # the pager handles it
