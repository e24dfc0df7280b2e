# SPDX-License-Identifier: Apache-2.0
"""Which servers of this host get a user namespace of their own."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from oslo_log import log as logging

from novadocker import exception, privsep
from novadocker.runtime import record
from novadocker.virt.docker.model import EngineInfo

LOG = logging.getLogger(__name__)

HOST, OWN, REQUIRED = "host", "own", "required"


@dataclass(frozen=True)
class Trial:
    """The result of a trial of this host.

    :ivar refusal: why no server can have a user namespace of its own; empty if servers can
    :ivar failure: why the trial gave no answer; empty if it did
    """

    refusal: str = ""
    failure: str = ""


@dataclass(frozen=True)
class UserNamespaces:
    """The user namespaces of this host's servers.

    :ivar default: whether a server gets its own if its flavor requests nothing
    :ivar ids: the host's ids for all servers
    :ivar trial: the last trial of this host
    """

    default: bool = False
    ids: range = range(0)
    trial: Trial = Trial()

    @property
    def impossible(self) -> str:
        """Why no server can get its own now; empty if servers can."""
        return self.trial.refusal or self.trial.failure

    def of_server(self, asked: str | None) -> bool:
        """Return True if a server gets a user namespace of its own, or does not start.

        A server never gets the host's ids because a trial failed.

        :param asked: ``own`` or ``host`` if the flavor requests one of them
        """
        if asked is None:
            return self.default and not self.trial.refusal
        return asked == OWN


def read(
    info: EngineInfo, mode: str, ids: str, why_impossible: Callable[[str], str]
) -> UserNamespaces:
    """Return the user namespaces of this host's servers.

    :param mode: the option ``user_namespaces``
    :param ids: the option ``user_namespace_ids``
    :param why_impossible: returns a reason for a data root of the engine, or nothing
    :raises InvalidConfiguration: the ids are malformed, or servers must have their own and cannot,
        or the trial failed
    """
    pool = parse_ids(ids)
    spaces = UserNamespaces(mode != HOST, pool, try_host(info, why_impossible))
    if spaces.impossible and mode == REQUIRED:
        raise exception.InvalidConfiguration(
            reason="[docker] user_namespaces requires a user namespace for each server, which this "
            f"host cannot provide: {spaces.impossible}"
        )
    if spaces.trial.refusal and mode == OWN:
        LOG.warning("Servers get no user namespaces of their own: %s", spaces.trial.refusal)
    if spaces.trial.failure and mode == OWN:
        LOG.warning(
            "Failed to try whether servers can have user namespaces of their own; trying again "
            "when a server starts: %s",
            spaces.trial.failure,
        )
    return spaces


def try_host(info: EngineInfo, why_impossible: Callable[[str], str]) -> Trial:
    """Try whether servers of this host can have their own user namespaces.

    :param why_impossible: returns a reason for a data root of the engine, or nothing
    """
    if info.user_namespaces:
        return Trial("the engine remaps users for all servers (userns-remap)")
    if info.storage_driver != "overlay2":
        return Trial(f"the engine's storage driver is {info.storage_driver}, not overlay2")
    try:
        return Trial(why_impossible(info.data_root))
    except (PermissionError, ValueError) as error:
        # The driver uses no such path, whenever it tries.
        return Trial(str(error))
    except (OSError, *privsep.UNANSWERED) as error:
        return Trial(failure=str(error) or type(error).__name__)


def parse_ids(text: str) -> range:
    """Return the ids of ``FIRST:COUNT``.

    :raises InvalidConfiguration: the text is malformed, or the ids are not whole ranges
    """
    found = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", text)
    first, count = (int(found[1]), int(found[2])) if found else (0, 0)
    size = record.IDS_OF_SERVER
    whole = count >= size and count % size == 0
    if not whole or not record.is_range(first) or not record.is_range(first + count - size):
        raise exception.InvalidConfiguration(
            reason=f"[docker] user_namespace_ids = {text[:40]!r} is not FIRST:COUNT in multiples "
            f"of {size}, with ids above {size - 1}"
        )
    return range(first, first + count)
