# SPDX-License-Identifier: Apache-2.0
"""The paths of /proc and /sys that no server can read."""

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    # the serial numbers and the UUID of the host
    "/sys/devices/virtual/dmi",
    # The energy that a CPU uses tells keys of other servers (CVE-2020-8694).
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""Those of the newest engine, since older ones mask fewer, and the host's identity."""
