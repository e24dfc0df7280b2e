# SPDX-License-Identifier: Apache-2.0
"""As root, these modules act on one container from outside: its files, limits and records."""
