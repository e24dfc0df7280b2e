# SPDX-License-Identifier: Apache-2.0
"""A freeze that ends, even if nova-compute or the engine is killed in the middle of it.

A mark lies in nova-compute's folder of instances meanwhile, by which the container is found
afterwards. What a tenant pauses has none.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from oslo_log import log as logging

from novadocker import exception
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import ContainerDetail

LOG = logging.getLogger(__name__)

PREFIX = "novadocker-frozen-"
"""What the name of a mark begins with; the container's id follows."""

GIVEN_UP = "novadocker-given-up-"
"""The same of a freeze that could not be ended, as the engine was away."""


@contextlib.contextmanager
def frozen(engine: Engine, container: ContainerDetail, folder: Path) -> Iterator[None]:
    """Freeze a container for the length of the block, if it runs.

    :param folder: where the mark lies
    :raises EngineUnavailable: the engine does not answer; ``thaw_given_up`` ends the freeze later
    """
    if container.status != "running":
        yield
        return
    mark = folder / f"{PREFIX}{container.id}"
    mark.touch()
    started = time.monotonic()
    try:
        engine.pause_container(container.id)
        yield
    finally:
        try:
            _thaw(engine, container.id)
        except (exception.EngineUnavailable, exception.EngineError):
            mark.rename(folder / f"{GIVEN_UP}{container.id}")
            raise
        mark.unlink()
    LOG.info("%s was frozen for %.2f s", container.name, time.monotonic() - started)


def thaw_left(engine: Engine, folder: Path) -> None:
    """Let every container go on that an earlier process froze and left so.

    :raises EngineUnavailable: the engine does not answer; the marks stay
    """
    for prefix in (PREFIX, GIVEN_UP):
        _thaw_marked(engine, folder, prefix)


def thaw_given_up(engine: Engine, folder: Path) -> None:
    """Let every container go on whose freeze could not be ended.

    :raises EngineUnavailable: the engine is away again; the marks stay
    """
    _thaw_marked(engine, folder, GIVEN_UP)


def _thaw_marked(engine: Engine, folder: Path, prefix: str) -> None:
    for mark in sorted(folder.glob(f"{prefix}*")):
        container_id = mark.name.removeprefix(prefix)
        LOG.warning("Container %s had been left frozen, and goes on", container_id)
        try:
            _thaw(engine, container_id)
        except exception.EngineError as error:
            LOG.warning("Container %s stays frozen: %s", container_id, error)
        else:
            mark.unlink()


def _thaw(engine: Engine, container_id: str) -> None:
    with contextlib.suppress(exception.ContainerNotFound):
        if engine.inspect_container(container_id).status == "paused":
            engine.unpause_container(container_id)
