# SPDX-License-Identifier: Apache-2.0
"""An engine with ``userns-remap``, whose containers' root is unprivileged on the host."""

import shlex
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import docker

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import ContainerSpec
from tests.engine.engines import OwnEngine
from tests.engine.machines import Machine

FIRST = 300_000
# Every machine has this account. Only the engine's mount namespace contains its subordinate ids.
ACCOUNT = "daemon"


@contextmanager
def remapped_engine(state_folder: Path, name: str) -> Iterator[OwnEngine]:
    """Run an engine that maps ids to those from ``FIRST``, in a new directory.

    :param state_folder: the session's directory
    :param name: the name of the directory, which also gets ``subuid`` and ``subgid``
    """
    # The containers' root must reach its files.
    state_folder.chmod(0o711)
    folder = state_folder / name
    folder.mkdir()
    for table in ("subuid", "subgid"):
        (folder / table).write_text(f"someone:1000:5\n{ACCOUNT}:{FIRST}:65536\n")
    mounts = "; ".join(
        shlex.join(["mount", "--bind", str(folder / table), f"/etc/{table}"])
        for table in ("subuid", "subgid")
    )
    # The directories of the namespaces must be shared mounts before the engine's mount namespace
    # exists.
    mark = (state_folder / "mark").read_text()
    first = mark + str(uuid.uuid4())[len(mark) :]
    namespace.create_owned_namespace(first, [(0, FIRST, 1)], [(0, FIRST, 1)])
    runtime.delete_namespace(first)
    inside = ["sh", "-c", f'{mounts}; exec "$@"', "-"]
    engine = OwnEngine(
        folder,
        ["unshare", "--mount", "--propagation", "slave", *inside],
        **{"userns-remap": ACCOUNT},
    )
    yield engine
    engine.stop()


@contextmanager
def server(
    own: OwnEngine, client: docker.APIClient, instance_uuid: str, spec: ContainerSpec
) -> Iterator[Machine]:
    """Run a server in a network namespace of its own, by the runtime shim.

    :param spec: the container, except for its name and its runtime
    """
    ids = [(0, FIRST, 65536)]
    engine = Engine(own.url, timeout=30, load_timeout=60)
    name = f"nova-{instance_uuid}"
    namespace.create_owned_namespace(instance_uuid, ids, ids)
    container = engine.create_container(replace(spec, name=name, runtime="novadocker"))
    try:
        runtime.bind_container(container, instance_uuid, etc_files={}, login=None)
        engine.start_container(container)
        yield Machine(client, name, container, engine.inspect_container(container).pid)
    finally:
        engine.remove_container(container)
        runtime.delete_namespace(instance_uuid)
