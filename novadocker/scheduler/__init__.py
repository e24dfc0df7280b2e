# SPDX-License-Identifier: Apache-2.0
"""nova-scheduler loads the weighers of this directory by name.

Install the package where nova-scheduler runs.
"""

from novadocker.scheduler.weigher import SameHostWeigher

__all__ = ["SameHostWeigher"]
