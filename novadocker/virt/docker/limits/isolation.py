# SPDX-License-Identifier: Apache-2.0
"""Calculation of an instance's isolation from the extra specs of ``docker:``; pure.

``engine/seccomp`` derives the seccomp profile from the isolation. Everything else is the engine's
default: its AppArmor profile, the masked and read-only paths of /proc and /sys, and devices such as
/dev/null.
"""

from collections.abc import Mapping

from oslo_utils import units

from novadocker import exception, extra_specs
from novadocker.extra_specs import Nesting
from novadocker.virt.docker.limits.capabilities import ALL, CAPABILITIES, NESTING, NESTING_VOLUMES
from novadocker.virt.docker.model import Isolation, ResourceLimit


def isolation(asked: Mapping[str, str]) -> Isolation:
    """Return the isolation of an instance.

    :param asked: validated extra specs, as ``flavor.asked`` returns them
    """
    nesting = extra_specs.NESTING.parse(asked.get(extra_specs.NESTING.name, Nesting.NO))
    more = _words(extra_specs.CAPABILITY_LIST, asked)
    shm = asked.get(extra_specs.SHM_SIZE.name)
    score = asked.get(extra_specs.OOM_SCORE_ADJ.name, "0")
    return Isolation(
        capabilities=_capabilities(nesting, more),
        devices=_words(extra_specs.DEVICES, asked),
        resource_limits=tuple(
            ResourceLimit(spec.resource, *spec.parse(asked[spec.name]))
            for spec in extra_specs.ULIMITS
            if spec.name in asked
        ),
        shm_bytes=extra_specs.SHM_SIZE.parse(shm) * units.Mi if shm else None,
        oom_score_adj=extra_specs.OOM_SCORE_ADJ.parse(score),
        nesting=nesting,
        volumes=NESTING_VOLUMES if nesting == Nesting.UNPRIVILEGED else (),
        sysctls=tuple(
            (spec.sysctl, spec.parse(asked[spec.name]))
            for spec in extra_specs.SYSCTLS
            if spec.name in asked
        ),
    )


def _capabilities(nesting: Nesting, more: tuple[str, ...]) -> tuple[str, ...]:
    if nesting == Nesting.UNPRIVILEGED:
        return (ALL,)
    nested = NESTING if nesting == Nesting.HOST else ()
    return tuple(sorted({*CAPABILITIES, *more, *nested}))


def check_user_namespace(found: Isolation) -> None:
    """Check that an instance with the ids of the host gets no power over the host by accident.

    :raises InvalidLimits: the isolation is safe only in a user namespace
    """
    if found.nesting == Nesting.HOST:
        return
    if found.nesting == Nesting.UNPRIVILEGED:
        raise exception.InvalidLimits(
            reason=f"{extra_specs.NESTING.name}=true needs a user namespace, and the server has "
            f"none on this host ({extra_specs.USERNS.name}=own)"
        )
    for name in found.capabilities:
        if name in extra_specs.NAMESPACE_CAPABILITIES:
            raise exception.InvalidLimits(
                reason=f"{extra_specs.CAPABILITY_LIST.name}={name} needs a user namespace, and the "
                f"server has none on this host ({extra_specs.USERNS.name}=own)"
            )


def of_present(asked: Mapping[str, str], user_namespace: bool) -> Isolation:
    """Return the isolation of an instance whose container exists.

    ``docker:nesting=true`` meant ``host`` once. An instance of that time can be resized to a flavor
    with ``host``.

    :param user_namespace: True if the instance has a user namespace
    """
    found = isolation(asked)
    if found.nesting == Nesting.UNPRIVILEGED and not user_namespace:
        return isolation({**asked, extra_specs.NESTING.name: Nesting.HOST})
    return found


def _words(spec: extra_specs.Words, asked: Mapping[str, str]) -> tuple[str, ...]:
    return spec.parse(asked[spec.name]) if spec.name in asked else ()
