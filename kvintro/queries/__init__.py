# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions to a kernel whose answers several reports share."""
