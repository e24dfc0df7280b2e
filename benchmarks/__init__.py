# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: the driver's figures beside those of the usual alternative."""
