# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per report: it asks the kernel and returns a :class:`~kvintro.model.Report`. None prints."""
