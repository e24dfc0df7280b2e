# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what the driver does, side by side with what one would use instead."""
