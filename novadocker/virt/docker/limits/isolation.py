# SPDX-License-Identifier: Apache-2.0
"""Calculation of an instance's isolation from the extra specs of ``docker:``; pure.

``engine/seccomp`` derives the seccomp profile from the isolation. Everything else is the engine's
default: its AppArmor profile, the masked and read-only paths of /proc and /sys, and devices such as
/dev/null.
"""

from collections.abc import Mapping

from oslo_utils import units

from novadocker import extra_specs
from novadocker.virt.docker.limits.capabilities import CAPABILITIES, NESTING
from novadocker.virt.docker.model import Isolation, ResourceLimit


def isolation(asked: Mapping[str, str]) -> Isolation:
    """Return the isolation of an instance.

    :param asked: validated extra specs, as ``flavor.asked`` returns them
    """
    nesting = extra_specs.NESTING.parse(asked.get(extra_specs.NESTING.name, "false"))
    more = _words(extra_specs.CAPABILITY_LIST, asked)
    shm = asked.get(extra_specs.SHM_SIZE.name)
    score = asked.get(extra_specs.OOM_SCORE_ADJ.name, "0")
    return Isolation(
        capabilities=tuple(sorted({*CAPABILITIES, *more, *(NESTING if nesting else ())})),
        devices=_words(extra_specs.DEVICES, asked),
        resource_limits=tuple(
            ResourceLimit(spec.resource, *spec.parse(asked[spec.name]))
            for spec in extra_specs.ULIMITS
            if spec.name in asked
        ),
        shm_bytes=extra_specs.SHM_SIZE.parse(shm) * units.Mi if shm else None,
        oom_score_adj=extra_specs.OOM_SCORE_ADJ.parse(score),
        nesting=nesting,
        sysctls=tuple(
            (spec.sysctl, spec.parse(asked[spec.name]))
            for spec in extra_specs.SYSCTLS
            if spec.name in asked
        ),
    )


def _words(spec: extra_specs.Words, asked: Mapping[str, str]) -> tuple[str, ...]:
    return spec.parse(asked[spec.name]) if spec.name in asked else ()
