# SPDX-License-Identifier: Apache-2.0
"""A Nova compute driver that runs Docker containers as servers.

Imports nothing, because ``novadocker-loader.pth`` imports this package at every interpreter start.
"""
