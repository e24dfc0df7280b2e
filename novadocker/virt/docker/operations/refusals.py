# SPDX-License-Identifier: Apache-2.0
"""Refusals of users' requests, as lines of the log that an operator need not act on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging

from novadocker import exception, privsep

LOG = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_REFUSALS = (exception.Expected, *exception.REQUEST_FAULTS)


@contextlib.contextmanager
def before_spawn(instance: objects.Instance) -> Iterator[None]:
    """Log a failure of the block as one warning, and raise it as ``prepare_for_spawn`` may.

    There Nova's manager knows two exceptions of which it logs no traceback. For each other one it
    says that it failed to prepare block devices, and tries no other host.

    :raises BuildRefused: no host can build what is asked for
    :raises HostUnready: another host may be able to
    """
    try:
        yield
    except exception.DELETED:
        raise
    except _REFUSALS as error:
        LOG.warning("The request is refused: %s", error, instance=instance)
        raise exception.BuildRefused(reason=str(error)) from None
    except (nova_exception.NovaException, OSError, *privsep.UNANSWERED) as error:
        LOG.warning("Failed to prepare a build on this host: %s", error, instance=instance)
        raise exception.HostUnready(reason=str(error)) from None


def concise(method: Callable[P, T]) -> Callable[P, T]:
    """Log a refusal in a method of the driver as one warning, and raise it without its frames.

    Nova's manager logs exceptions with the frames of the driver and with all causes, some of them
    twice. The decorator leaves other exceptions as they are.
    """

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (nova_exception.InstanceFaultRollback, *_REFUSALS) as error:
            rollback = isinstance(error, nova_exception.InstanceFaultRollback)
            reason = error.inner_exception if rollback else error
            if not isinstance(reason, _REFUSALS):
                raise
            given = (*args, *kwargs.values())
            instance = next((each for each in given if isinstance(each, objects.Instance)), None)
            LOG.warning("The request is refused: %s", reason, instance=instance)
            reason.with_traceback(None)
            reason.__cause__, reason.__suppress_context__ = None, True
            raise error.with_traceback(None) from None

    return wrapped
