# SPDX-License-Identifier: Apache-2.0
"""Stopping the cloud. Standard library only, because it must work without the venv."""

import concurrent.futures
import http.client
import json
import shutil
from pathlib import Path

from devcloud import leftovers, owner, supervise
from devcloud.leftovers import alive
from devcloud.programs import all_programs
from devcloud.settings import PRIVILEGED_HELPER_RULE, Host, Settings
from devcloud.steps import StepFailed, explain, say, step, wait_until
from devcloud.unix_http import UnixConnection

KEPT = ("venv", "images", "guest", "tempest", "horizon", "lock")

STOP_SECONDS = 5


def stop_containers(settings: Settings, host: Host) -> None:
    """Stop a host's running containers. Does nothing if the engine does not answer."""
    path = settings.engine_socket(host)
    try:
        connection = UnixConnection(path)
        connection.request("GET", "/containers/json")
        running = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException):
        # leftovers.clear() ends the containers of an engine that is gone.
        return

    def stop(container: str) -> None:
        request = UnixConnection(path, timeout=60)
        request.request("POST", f"/containers/{container}/stop?t={STOP_SECONDS}")
        request.getresponse().read()

    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(stop, [container["Id"] for container in running]))


def stop_supervised(settings: Settings) -> None:
    """Stop every program, then supervisor."""
    programs = all_programs(settings)
    # nova-compute stops first, because it would report the stopped containers as stopped servers.
    with step("nova-compute stopped"):
        supervise.stop_programs(
            settings,
            [p.name for p in programs if p.stage in ("compute", "extra")],
        )
    with step("containers stopped"):
        for host in settings.hosts:
            stop_containers(settings, host)
    with step("services stopped"):
        # RabbitMQ unregisters at epmd when it stops, so epmd stops after it.
        supervise.stop_programs(settings, [p.name for p in programs if p.name != "epmd"])
        supervise.stop_programs(settings, ["epmd"])
    with step("supervisor stopped"):
        process = supervise.proxy(settings).getPID()
        # supervisor is the subreaper of orphaned processes, so it must outlive and reap them.
        leftovers.end_all_processes(settings, spare=process)
        supervise.proxy(settings).shutdown()
        wait_until(
            lambda: not alive(process),
            what="supervisor ends",
            advice=f"kill {process}",
            log=settings.log / "supervisord.log",
            timeout=20,
            interval=0.05,
        )


def down(settings: Settings) -> None:
    """Stop everything. No kernel object remains; the data remains on disk.

    :raises StepFailed: the running cloud belongs to another state directory.
    """
    owner.require_own(settings)
    if supervise.is_alive(settings):
        try:
            stop_supervised(settings)
        except StepFailed as failure:
            # leftovers.clear() kills the programs that did not stop.
            say(explain(failure))
    with step("namespaces and mounts removed"):
        leftovers.clear(settings)
    owner.release()
    say("the cloud is down")


def clean(settings: Settings, *, everything: bool) -> None:
    """Stop everything and delete the state.

    :param everything: delete the virtual environment and the built images, too.
    """
    down(settings)
    PRIVILEGED_HELPER_RULE.unlink(missing_ok=True)
    for entry in settings.folder.iterdir() if settings.folder.exists() else ():
        if everything or entry.name not in KEPT:
            remove(entry)
    say("the state is deleted")


def remove(path: Path) -> None:
    """Delete a file or a directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
