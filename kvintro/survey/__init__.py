# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same questions to many dumps: each dump in a process of its own, the answers as tables."""

#: What the interpreter of a child process runs, with a task as JSON on its standard input. It starts with -I,
#: so it imports nothing of the working directory before the search path is set.
START = (
    "import json, sys; task = json.load(sys.stdin); sys.path[:] = task['search']; "
    "from kvintro.survey.child import main; main(task)"
)
#: Exit status of a child process for which memory did not suffice.
NO_MEMORY = 9
