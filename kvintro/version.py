# SPDX-License-Identifier: LGPL-2.1-or-later
"""The version, in a module without imports."""

__version__ = "0.1.0"
