# SPDX-License-Identifier: Apache-2.0
"""Reboots from inside: the start of servers whose last run ended with reboot(2).

The engine reports the end of the first process, whose exit status tells a reboot from a power-off.
Until the server runs again, Nova gets the power state RUNNING, because Nova stops a server that it
finds down.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

import oslo_messaging
import psutil
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova import utils as nova_utils
from nova.compute import power_state, task_states, vm_states
from nova.network import model as network_model
from oslo_concurrency import processutils
from oslo_log import log as logging

from novadocker import exception, privsep
from novadocker.virt.docker.containers import servers
from novadocker.virt.docker.model import ContainerDetail
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.services import Services

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")

REBOOT_LOOP = "reboot_loop"
"""The action in Nova's log of a server that is not started again."""

_STATES = (vm_states.ACTIVE, vm_states.RESCUED, vm_states.RESIZED)
# Other tasks start or stop the server themselves, or copy its data.
_TASKS = (
    None,
    task_states.IMAGE_SNAPSHOT_PENDING,
    task_states.IMAGE_SNAPSHOT,
    task_states.IMAGE_PENDING_UPLOAD,
    task_states.IMAGE_UPLOADING,
    task_states.IMAGE_BACKUP,
    task_states.UPDATING_PASSWORD,
)
# A first process that ends with the exit status of a reboot by itself must not use up the host.
_MOST = 5
_SECONDS = 300.0
_AT_ONCE = 4
# The engine reports an event within milliseconds, on a busy host within seconds.
_EVENT_SECONDS = 10.0
# RabbitMQ and MariaDB may need minutes for a failover.
_OUTAGE_SECONDS = 300.0
_RETRY_SECONDS = 10.0
_NO_ANSWER = (exception.EngineUnavailable, oslo_messaging.MessagingException)


class Bound:
    """The number of reboots of each server within a period; thread-safe."""

    def __init__(self, most: int = _MOST, seconds: float = _SECONDS) -> None:
        self._most = most
        self._seconds = seconds
        self._lock = threading.Lock()
        self._times: dict[str, deque[float]] = {}
        self._ends: dict[str, datetime] = {}

    def count(self, instance_uuid: str, end: datetime, now: float) -> bool:
        """Count a reboot. Return False if the server has had too many in the period before.

        :param end: the end of the server's last run, which counts once
        """
        with self._lock:
            for uuid, times in list(self._times.items()):
                while times and times[0] <= now - self._seconds:
                    times.popleft()
                if not times:
                    del self._times[uuid], self._ends[uuid]
            if self._ends.get(instance_uuid) == end:
                return True
            times = self._times.setdefault(instance_uuid, deque())
            if len(times) >= self._most:
                return False
            times.append(now)
            self._ends[instance_uuid] = end
            return True


class InsideReboots:
    """Starts the servers that reboot from inside, each in a thread of its own.

    :param stopped: takes the UUID of each server that is not started
    :param looped: takes the UUID of each server that rebooted too often
    """

    def __init__(
        self,
        services: Services,
        power: Power,
        stopped: Callable[[str], None],
        looped: Callable[[str], None],
    ) -> None:
        self._services = services
        self._power = power
        self._stopped = stopped
        self._looped = looped
        self._bound = Bound()
        self._starts = threading.Semaphore(_AT_ONCE)
        self._lock = threading.Condition()
        # By server: whether it ended since the thread looked last. The thread removes the server.
        self._ended: dict[str, bool] = {}
        # By server: when a reboot ended without a start; seconds since the epoch.
        self._down: dict[str, float] = {}

    def add(self, instance_uuid: str) -> None:
        """Start a server whose last run ended with a reboot. Does not wait for the start."""
        with self._lock:
            has_thread = instance_uuid in self._ended
            self._ended[instance_uuid] = True
            self._lock.notify_all()
        if has_thread:
            return
        # A daemon thread does not delay the end of nova-compute.
        thread = threading.Thread(
            target=self._run, args=(instance_uuid,), name="inside-reboot", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            # systemd limits the number of threads, TasksMax.
            LOG.error("Failed to reboot: %s", error, instance_uuid=instance_uuid)
            with self._lock:
                self._remove_down(instance_uuid)
            self._stopped(instance_uuid)

    def add_missed(self, instance: objects.Instance) -> None:
        """Start an instance that rebooted while nova-compute did not run.

        Does nothing if the host went down after that, because Nova then decides next whether it
        resumes the instance.
        """
        server = self._services.server_list.recent_servers().get(instance.uuid)
        if server is None or not servers.has_rebooted(server):
            return
        with contextlib.suppress(exception.ContainerLost, exception.ContainerHangs):
            if not _ended_before_boot(self._services.find(instance)):
                self.add(instance.uuid)

    @staticmethod
    def locked(instance_uuid: str, function: Callable[[], Result]) -> Result:
        """Return the result of a function while no reboot and no operation of Nova runs.

        Nova's manager holds this lock while it stops, reboots, shelves or deletes the server, but
        not while it starts, pauses, rescues, rebuilds, resizes or migrates it, nor while it plugs
        the VIFs when nova-compute starts.
        """
        result: Result = nova_utils.synchronized(instance_uuid)(function)()
        return result

    @classmethod
    def await_start(cls, instance_uuid: str) -> None:
        """Wait for the start of a server that reboots.

        The caller is an operation for which Nova's manager does not hold its lock of the instance.
        No later reboot starts the server, because the operation's task is in Nova's database.
        """
        cls.locked(instance_uuid, lambda: None)

    def power_state(self, instance: objects.Instance, use_cache: bool) -> int:
        """Return Nova's power state of an instance; RUNNING while it reboots.

        See ``DockerDriver.get_info``.
        """
        # Before the state, because the server may be started in between.
        with self._lock:
            reboots, down = instance.uuid in self._ended, self._down.get(instance.uuid, 0.0)
        state = self._power.state(instance, use_cache)
        if state != power_state.SHUTDOWN or not _is_to_run(instance):
            return state
        if reboots:
            return int(power_state.RUNNING)
        return self._state_before_event(instance, state, down)

    def _state_before_event(self, instance: objects.Instance, state: int, down: float) -> int:
        """Return RUNNING if the engine has yet to report a reboot, else the present state.

        :param down: when the server's last reboot ended without a start
        """
        with contextlib.suppress(exception.ContainerLost, exception.ContainerHangs):
            found = self._services.find(instance)
            if servers.has_rebooted(found) and found.finished_at is not None:
                since = max(down, time.time() - _EVENT_SECONDS)
                awaited = found.finished_at.timestamp() > since
                return int(power_state.RUNNING) if awaited else state
            # The list that Nova compares with may be older than the start.
            return servers.power_state_of(found)
        return state

    def _run(self, instance_uuid: str) -> None:
        runs = True
        try:
            while self._take(instance_uuid, runs):
                runs = self._restart(instance_uuid)
        except BaseException:
            # Otherwise Nova would get the power state RUNNING for ever.
            with self._lock:
                self._remove_down(instance_uuid)
            raise
        if not runs:
            self._stopped(instance_uuid)

    def _take(self, instance_uuid: str, runs: bool) -> bool:
        """Return True if a server has ended; otherwise remove it.

        :param runs: False if it stays down unless it ended since
        """
        with self._lock:
            if self._ended[instance_uuid]:
                self._ended[instance_uuid] = False
                return True
            if runs:
                del self._ended[instance_uuid]
            else:
                self._remove_down(instance_uuid)
            return False

    def _remove_down(self, instance_uuid: str) -> None:
        """Remove a server that stays down; the caller holds the lock."""
        self._ended.pop(instance_uuid, None)
        now = time.time()
        # An older time makes no difference to the power state.
        self._down = {uuid: at for uuid, at in self._down.items() if now - at < _EVENT_SECONDS}
        self._down[instance_uuid] = now

    def _restart(self, instance_uuid: str) -> bool:
        """Start a server if it is still to be started. Return False if it stays down.

        Tries again for some minutes while the engine or Nova's conductor does not answer.
        """
        deadline = time.monotonic() + _OUTAGE_SECONDS
        while True:
            try:
                return self._restart_once(instance_uuid)
            except _NO_ANSWER as error:
                if time.monotonic() >= deadline:
                    LOG.error("Failed to reboot: %s", error, instance_uuid=instance_uuid)
                    # When the engine answers again, its events report the server again.
                    return isinstance(error, exception.EngineUnavailable)
                LOG.warning(
                    "Failed to reboot, will try again: %s", error, instance_uuid=instance_uuid
                )
            with self._lock:
                # The engine's events report the server when the engine answers again.
                self._lock.wait_for(lambda: self._ended[instance_uuid], _RETRY_SECONDS)
                self._ended[instance_uuid] = False

    def _restart_once(self, instance_uuid: str) -> bool:
        """Start a server if it is still to be started. Return False if it stays down.

        :raises EngineUnavailable: the engine does not answer
        :raises MessagingException: Nova's conductor does not answer
        """
        try:
            return self.locked(instance_uuid, lambda: self._restart_locked(instance_uuid))
        except (nova_exception.InstanceNotFound, exception.ContainerLost):
            LOG.debug("Instance %s was deleted meanwhile", instance_uuid)
        except _NO_ANSWER:
            raise
        except exception.ProcessEnded as error:
            # The engine's events report this end, too.
            LOG.warning("Failed to reboot: %s", error, instance_uuid=instance_uuid)
        except (
            nova_exception.NovaException,
            processutils.ProcessExecutionError,
            OSError,
            *privsep.UNANSWERED,
        ) as error:
            LOG.error("Failed to reboot: %s", error, instance_uuid=instance_uuid)
            return False
        return True

    def _restart_locked(self, instance_uuid: str) -> bool:
        # Nova may change the instance during the starts of other servers.
        with self._starts:
            return self._restart_wanted(instance_uuid)

    def _restart_wanted(self, instance_uuid: str) -> bool:
        instance = self._services.read_instance(nova_context.get_admin_context(), instance_uuid)
        if not self._is_wanted(instance):
            return False
        found = self._services.find(instance)
        if not servers.has_rebooted(found):
            return not servers.has_ended(found)
        if reason := self._refusal(instance, found):
            LOG.warning("Not starting the server, which rebooted: %s", reason, instance=instance)
            return False
        LOG.info("The server reboots from inside", instance=instance)
        self._services.consoles.close(instance.uuid)
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._power.start(found, instance, ports)
        # Nova compares power states with this list, so the list is read again.
        self._services.server_list.servers()
        return True

    def _is_wanted(self, instance: objects.Instance) -> bool:
        """Return True if Nova has an instance on this host and wants it to run."""
        if instance.host == self._services.name and _is_to_run(instance):
            return True
        # An init may reboot at the stop signal, as busybox does at SIGTERM.
        LOG.info(
            "Not starting the server, which rebooted: its host is %s, its state %s, its task %s",
            instance.host,
            instance.vm_state,
            instance.task_state,
            instance=instance,
        )
        return False

    def _refusal(self, instance: objects.Instance, found: ContainerDetail) -> str | None:
        """Return why a server that rebooted is not started; None if it is."""
        if found.finished_at is None or _ended_before_boot(found):
            return "the host went down after that"
        if not self._bound.count(instance.uuid, found.finished_at, time.monotonic()):
            self._looped(instance.uuid)
            return f"it has rebooted {_MOST} times within {_SECONDS:.0f} seconds"
        return None


def _ended_before_boot(found: ContainerDetail) -> bool:
    """Return True if a container's last run ended before the host's last boot."""
    return found.finished_at is None or found.finished_at.timestamp() < psutil.boot_time()


def _is_to_run(instance: objects.Instance) -> bool:
    return instance.vm_state in _STATES and instance.task_state in _TASKS
