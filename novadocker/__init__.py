# SPDX-License-Identifier: Apache-2.0
"""A Nova compute driver that runs Docker containers as servers.

Kept free of imports: the loader's ``.pth`` hook reads this package at every interpreter start.
"""
