# SPDX-License-Identifier: Apache-2.0
"""A freeze that ends, even if nova-compute is killed in the middle of it.

A mark lies in nova-compute's folder of instances meanwhile, by which the next start finds the
container. What a tenant pauses has none.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from oslo_log import log as logging

from novadocker import exception
from novadocker.virt.docker.engine import Engine
from novadocker.virt.docker.model import ContainerDetail

LOG = logging.getLogger(__name__)

PREFIX = "novadocker-frozen-"
"""What the name of a mark begins with; the container's id follows."""


@contextlib.contextmanager
def frozen(engine: Engine, container: ContainerDetail, folder: Path) -> Iterator[None]:
    """Freeze a container for the length of the block, if it runs.

    :param folder: where the mark lies
    """
    if container.status != "running":
        yield
        return
    mark = folder / f"{PREFIX}{container.id}"
    mark.touch()
    started = time.monotonic()
    try:
        engine.pause_container(container.id)
    except exception.EngineError:
        _thaw(engine, mark)
        raise
    try:
        yield
    finally:
        engine.unpause_container(container.id)
        mark.unlink()
        LOG.info("%s was frozen for %.2f s", container.name, time.monotonic() - started)


def thaw_left(engine: Engine, folder: Path) -> None:
    """Let every container go on that an earlier process froze and left so.

    :raises EngineUnavailable: the engine does not answer; the marks stay
    """
    for mark in sorted(folder.glob(f"{PREFIX}*")):
        _thaw(engine, mark)


def _thaw(engine: Engine, mark: Path) -> None:
    container_id = mark.name.removeprefix(PREFIX)
    with contextlib.suppress(exception.ContainerNotFound):
        found = engine.inspect_container(container_id)
        if found.status == "paused":
            engine.unpause_container(container_id)
            LOG.warning("%s had been left frozen by a snapshot, and goes on", found.name)
    mark.unlink()
