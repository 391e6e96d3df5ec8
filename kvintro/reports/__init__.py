# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per report. Each queries the kernel and returns a :class:`~kvintro.model.Report`; none prints."""
