# SPDX-License-Identifier: Apache-2.0
"""An engine with ``userns-remap``, whose containers' root is unprivileged on the host."""

import shlex
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from tests.engine.engines import OwnEngine

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
