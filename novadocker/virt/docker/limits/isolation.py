# SPDX-License-Identifier: Apache-2.0
"""Extra specs of ``docker:`` -> what a server may do to the kernel; pure.

What is not said here is the engine's default: its seccomp profile, the masked and read-only paths
of /proc and /sys, the few devices that lead nowhere.
"""

from collections.abc import Mapping

from oslo_utils import units

from novadocker import extra_specs
from novadocker.virt.docker.model import Isolation, ResourceLimit

# The engine's own list (moby/oci/caps), but without MKNOD, since no device node made inside could
# be opened, and with SYS_PTRACE, which sees no process outside and lets root trace any user's.
CAPABILITIES = (
    # sudo, su and sshd fail without it, where the kernel has audit
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "SYS_PTRACE",
)
# what an engine inside needs to mount, to wire and to give devices to its containers
_NESTING = ("MKNOD", "NET_ADMIN", "SYS_ADMIN")


def isolation(asked: Mapping[str, str]) -> Isolation:
    """Return how a server is kept apart.

    :param asked: well-formed extra specs, as ``limits.asked`` returns them
    """
    nesting = extra_specs.NESTING.parse(asked.get(extra_specs.NESTING.name, "false"))
    more = _words(extra_specs.CAPABILITY_LIST, asked)
    shm = asked.get(extra_specs.SHM_SIZE.name)
    score = asked.get(extra_specs.OOM_SCORE_ADJ.name, "0")
    return Isolation(
        capabilities=tuple(sorted({*CAPABILITIES, *more, *(_NESTING if nesting else ())})),
        devices=_words(extra_specs.DEVICES, asked),
        resource_limits=tuple(
            ResourceLimit(spec.resource, *spec.parse(asked[spec.name]))
            for spec in extra_specs.ULIMITS
            if spec.name in asked
        ),
        shm_bytes=extra_specs.SHM_SIZE.parse(shm) * units.Mi if shm else None,
        oom_score_adj=extra_specs.OOM_SCORE_ADJ.parse(score),
        nesting=nesting,
    )


def _words(spec: extra_specs.Words, asked: Mapping[str, str]) -> tuple[str, ...]:
    return spec.parse(asked[spec.name]) if spec.name in asked else ()
