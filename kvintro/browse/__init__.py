# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro browse``: walk through the address space with the keyboard.

``lines.py`` and ``places.py`` are values: the content of the screen, and the places to go to. ``sheets.py``
turns reports into lines; ``stretches.py`` and ``mapping.py`` make the map. ``session.py`` queries the kernel,
which ``worker.py`` runs in its own thread. ``left.py`` has the views of the left pane. ``listing.py``,
``dialogs.py`` and ``app.py`` are the screen; only these use Textual. ``start.py`` starts the browser.
"""
