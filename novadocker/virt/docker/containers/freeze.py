# SPDX-License-Identifier: Apache-2.0
"""A freeze of a container that ends even if nova-compute or the engine is killed meanwhile.

While the container is frozen, a file in nova-compute's directory of instances marks it, so that
the container can be found afterwards. A server that its tenant paused has no mark.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.linux.threads import Failures
from novadocker.virt.docker.containers.protocols import ContainerEngine
from novadocker.virt.docker.engine.connection import PATIENCE
from novadocker.virt.docker.model import ContainerDetail

LOG = logging.getLogger(__name__)

PREFIX = "novadocker-frozen-"
"""The start of a mark's name; the container's id follows."""

GIVEN_UP = "novadocker-given-up-"
"""The start of the mark's name after the engine failed to end the freeze."""


@contextlib.contextmanager
def frozen(engine: ContainerEngine, container: ContainerDetail, directory: Path) -> Iterator[None]:
    """Freeze a container while the block runs, if it runs.

    A container that is stopped or paused is not frozen, but must stay so.

    :param directory: the directory of the mark
    :raises EngineUnavailable: the engine does not answer; ``thaw_given_up`` ends the freeze later
    :raises RanMeanwhile: the container was not frozen, and ran during the block
    """
    # The caller may have inspected the container long before.
    before = engine.inspect_container(container.id)
    if before.status != "running":
        yield
        after = engine.inspect_container(container.id)
        if _run_of(after) != _run_of(before):
            raise exception.RanMeanwhile(name=container.name)
        return
    mark = directory / f"{PREFIX}{container.id}"
    mark.touch()
    started = time.monotonic()
    try:
        engine.pause_container(container.id)
        yield
    finally:
        try:
            _thaw(engine, container.id)
        except (exception.EngineUnavailable, exception.EngineError):
            mark.rename(directory / f"{GIVEN_UP}{container.id}")
            raise
        mark.unlink()
    LOG.info(
        "Container %s was frozen for %.2f s",
        container.name,
        time.monotonic() - started,
        instance_uuid=container.labels.get(naming.LABEL_UUID),
    )


def _run_of(container: ContainerDetail) -> tuple[object, ...]:
    """Return what differs between two inspections if the container ran between them."""
    # A container without a process has no started_at.
    return container.status, container.started_at, container.finished_at


def thaw_left(engine: ContainerEngine, directory: Path) -> None:
    """Thaw every container that an earlier nova-compute froze and did not thaw.

    :raises EngineUnavailable: the engine does not answer; the marks are kept
    """
    for prefix in (PREFIX, GIVEN_UP):
        _thaw_marked(engine, directory, prefix, thaw_failures())


def thaw_failures() -> Failures:
    """Return what ``thaw_given_up`` keeps between its calls."""
    return Failures(
        "Failed to thaw container",
        (exception.EngineError, OSError),
        (exception.EngineUnavailable,),
    )


def thaw_given_up(engine: ContainerEngine, directory: Path, failures: Failures) -> None:
    """Thaw every container that the engine failed to thaw.

    :param failures: of the containers that failed before
    :raises EngineUnavailable: the engine does not answer; the marks are kept
    """
    _thaw_marked(engine, directory, GIVEN_UP, failures)


def _thaw_marked(engine: ContainerEngine, directory: Path, prefix: str, failures: Failures) -> None:
    with engine.within(PATIENCE):
        _thaw_each(engine, directory, prefix, failures)


def _thaw_each(engine: ContainerEngine, directory: Path, prefix: str, failures: Failures) -> None:
    marks = {mark.name.removeprefix(prefix): mark for mark in sorted(directory.glob(f"{prefix}*"))}
    failures.keep(marks)
    for container_id, mark in marks.items():
        with failures.of(container_id):
            _thaw(engine, container_id)
            mark.unlink()
            LOG.warning("Thawed container %s, which was left frozen", container_id)


def _thaw(engine: ContainerEngine, container_id: str) -> None:
    with contextlib.suppress(exception.ContainerNotFound):
        if engine.inspect_container(container_id).status == "paused":
            engine.unpause_container(container_id)
