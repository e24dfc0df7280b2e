# SPDX-License-Identifier: Apache-2.0
"""Plug-ins of nova-scheduler, which loads them by name."""

from novadocker.scheduler.weigher import SameHostWeigher

__all__ = ["SameHostWeigher"]
