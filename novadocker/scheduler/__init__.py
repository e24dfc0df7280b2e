# SPDX-License-Identifier: Apache-2.0
"""What nova-scheduler loads by name; installed where it runs."""

from novadocker.scheduler.weigher import SameHostWeigher

__all__ = ["SameHostWeigher"]
