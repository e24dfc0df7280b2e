# SPDX-License-Identifier: Apache-2.0
"""A nova-compute for one operation, in its own process, which may be killed during the operation.

It dies without any clean-up, immediately before one of its requests to the engine, to the
privileged process or to the switch. The privileged process completes its current call, as it does
when its client dies.
"""

import importlib
import itertools
import os
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import docker
import os_vif
import vif_plug_ovs.privsep
from nova import conf
from oslo_privsep import priv_context

from novadocker import privsep
from novadocker.linux import threads
from novadocker.virt.docker.images import store
from tests.engine import servers
from tests.engine.switch import use_switch
from tests.fake_glance import FakeGlance

KILLED = 9
"""The exit status of a process that was killed before it had finished."""

# The driver's threads besides the one in which an operation begins; their requests come in any
# order.
_THREADS = ("os-vif", threads.THREAD)


class _Channel:
    """A replacement for the channel to the privileged process; calls functions in this process."""

    running = True

    def __init__(self, strike: Callable[[], None]) -> None:
        self._strike = strike
        self._inside = threading.local()

    def remote_call(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], _timeout: object = None
    ) -> Any:
        module, _, function = name.rpartition(".")
        outermost = not getattr(self._inside, "now", False)
        if outermost:
            self._strike()
        self._inside.now = True
        try:
            return getattr(importlib.import_module(module), function).args[0](*args, **kwargs)
        finally:
            self._inside.now = not outermost


Operation = Callable[[servers.Nova, servers.Server], servers.Server | None]


def run(
    operation: Operation,
    server: servers.Server,
    known: list[servers.Server],
    point: int,
    result: Connection,
    url: str,
    switch: str,
    instances: Path,
    glance: FakeGlance,
) -> None:
    """Start nova-compute, then run an operation and die at one of its points.

    :param known: the host's servers in Nova's database
    :param point: the number of the request before which the process dies; 0 for none
    :param result: receives the operation's result
    :param switch: the connection of Open vSwitch's database
    """
    conf.CONF([], project="nova", default_config_files=[])
    use_switch(switch)
    store.glance.API = lambda: glance
    armed = threading.Event()
    numbers = itertools.count(1)

    def strike() -> None:
        current = threading.current_thread()
        concerned = current is threading.main_thread() or current.name.startswith(_THREADS)
        if armed.is_set() and concerned and next(numbers) == point:
            os._exit(KILLED)

    def striking(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            strike()
            return function(*args, **kwargs)

        return call

    docker.APIClient.send = striking(docker.APIClient.send)
    os_vif.plug, os_vif.unplug = striking(os_vif.plug), striking(os_vif.unplug)
    for context in (*vars(privsep).values(), vif_plug_ovs.privsep.vif_plug):
        if isinstance(context, priv_context.PrivContext):
            context.channel = _Channel(strike)
    with servers.configured(url, instances):
        nova = servers.Nova(glance)
        nova.start(known)
        armed.set()
        result.send(operation(nova, server))
        # The process ends like a stopped service, without waiting for its threads.
        os._exit(0)
