# SPDX-License-Identifier: LGPL-2.1-or-later
"""Queries of a kernel whose answers several reports share."""
