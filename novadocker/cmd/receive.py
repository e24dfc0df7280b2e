# SPDX-License-Identifier: Apache-2.0
"""``novadocker-receive``: takes a server's data on the host that it moves to.

nova-compute of the host that it leaves starts it, through ssh, as nova-compute's user. It talks on
standard input and output, see ``novadocker.virt.docker.migration.transfer``.
"""

import json
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import IO, Any

from nova import config, utils
from oslo_privsep import daemon, priv_context

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.linux import pipes
from novadocker.privsep.storage import staging
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.connection import Tls
from novadocker.virt.docker.migration import transport
from novadocker.virt.docker.migration.registry_client import Repository
from novadocker.virt.docker.migration.transfer import VERSION

_CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FAILURES = (
    exception.EngineError,
    exception.EngineUnavailable,
    exception.RegistryFailed,
    daemon.FailedToDropPrivileges,
    pipes.StreamError,
    OSError,
    ValueError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one move; return 0 if the data was kept."""
    options = sys.argv[1:] if arguments is None else arguments
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # whatever a library prints must not get between the answers
    os.dup2(2, 1)
    config.parse_args(["nova-compute", *options], configure_db=False, init_rpc=False)
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    return serve(os.fdopen(0, "rb", buffering=0), answers)


def serve(source: IO[bytes], answers: IO[str]) -> int:
    """Answer on ``answers`` what comes from ``source``; return 0 if the data was kept."""
    # the privileged helper can open a pipe of this process's, and a socket of ssh's it can't
    read, write = os.pipe()
    threading.Thread(target=_relay, args=(source, write), daemon=True).start()
    with os.fdopen(read, "rb", buffering=0) as pipe:
        kept = False
        uuid = data_root = ""
        try:
            greeting = _read(pipe)
            if greeting.get("version") != VERSION:
                raise ValueError("the hosts have different releases of the driver")
            uuid, token = str(greeting["uuid"]), str(greeting["token"])
            engine = Engine(
                CONF.docker.api_url,
                CONF.docker.api_timeout,
                CONF.docker.image_load_timeout,
                Tls(CONF.docker.ca_file, CONF.docker.cert_file, CONF.docker.key_file),
            )
            data_root = _check_host(engine, uuid)
            staging.discard_folders(data_root, uuid)
            image_id = _digest(greeting["image"])
            _say(answers, ready=True, image=transport.keep_image(engine, image_id))
            while "commit" not in (order := _read(pipe)):
                if "load" in order:
                    engine.load_image(_chunks(pipe))
                    if not transport.keep_image(engine, image_id):
                        raise ValueError("the engine made another image of what was sent")
                    _say(answers, loaded=True)
                elif "pull" in order:
                    transport.pull_image(
                        engine, _repository(uuid), _digest(order["pull"]), image_id
                    )
                    _say(answers, loaded=True)
                elif "fetch" in order:
                    chunks = _repository(uuid).download(_digest(order["fetch"]))
                    with pipes.written_with(chunks) as stream:
                        staging.receive_folders(data_root, uuid, token, stream)
                    _say(answers, applied=True)
                else:
                    staging.receive_folders(data_root, uuid, token, (os.getpid(), pipe.fileno()))
                    _say(answers, applied=True)
            kept = True
            _say(answers, kept=True)
        except _FAILURES as error:
            if data_root and not kept:
                staging.discard_folders(data_root, uuid)
            print(f"novadocker-receive: {error}", file=sys.stderr)
            if not isinstance(error, BrokenPipeError):
                _say(answers, refused=str(error))
    return 0 if kept else 1


def _check_host(engine: Engine, uuid: str) -> str:
    """Return the engine's data root.

    :raises ValueError: this host can't take the server
    """
    info = engine.info()
    if info.storage_driver != "overlay2":
        raise ValueError(f"its engine's storage driver is {info.storage_driver}, not overlay2")
    if info.user_namespaces:
        raise ValueError("its engine remaps users (userns-remap)")
    try:
        engine.inspect_container(naming.container_name(uuid))
    except exception.ContainerNotFound:
        return info.data_root
    raise ValueError("it has a container of the server already")


def _repository(uuid: str) -> Repository:
    if not CONF.docker.transfer_registry:
        raise ValueError("its option transfer_registry is not set")
    return transport.repository(uuid)


def _digest(text: object) -> str:
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ValueError(f"{text!r} is no digest")
    return text


def _chunks(pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield an image's archive until its end; the engine gets no more of one that is cut off."""
    while left := int(_read(pipe)["bytes"]):
        while left:
            chunk = pipe.read(min(left, _CHUNK))
            if not chunk:
                raise BrokenPipeError("the other host is gone")
            left -= len(chunk)
            yield chunk


def _relay(source: IO[bytes], target: int) -> None:
    try:
        # who stops to read says why
        with suppress(BrokenPipeError):
            while chunk := source.read(_CHUNK):
                pipes.write_all(target, chunk)
    finally:
        os.close(target)


def _read(pipe: IO[bytes]) -> dict[str, Any]:
    line = pipe.readline(1 << 16)
    if not line:
        raise BrokenPipeError("the other host is gone")
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not well-formed")
    return fields


def _say(answers: IO[str], **fields: object) -> None:
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
