# SPDX-License-Identifier: Apache-2.0
"""Rebuilds of a server that answers requests, and the duration of its outage."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from openstack.connection import Connection

from devcloud.network import inside
from devcloud.settings import Settings
from devcloud.steps import StepFailed
from tests.cloud.servers import Servers, address

_ROUNDS = 5
# Before these rounds, the images are not on the host.
_WARM_UPS = 2
# The port that the tenant's security group allows.
_PORT = 22
_COMMAND = "sh -c 'mkdir -p /srv; echo {} >/srv/index.html; exec httpd -f -p {} -h /srv'"
_SECONDS = 120
# All processes have the same monotonic clock.
_ASK = """
import http.client, sys, time
server, port, release = sys.argv[1:]
last = time.monotonic()
while True:
    asked = http.client.HTTPConnection(server, int(port), timeout=1)
    try:
        asked.request("GET", "/")
        said = asked.getresponse().read().decode().strip()
        now = time.monotonic()
        if said == release:
            break
        last = now
    except (OSError, http.client.HTTPException):
        pass
    finally:
        asked.close()
    time.sleep(0.02)
print(last, now)
"""


@dataclass
class Rebuilds:
    """Seconds of each rebuild.

    :ivar first_answers: from the call until the new release answers
    :ivar gaps: from the last answer of the old release to the first answer of the new release
    """

    first_answers: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


def rebuild(
    settings: Settings, demo: Connection, upload: Callable[..., str], servers: Servers
) -> Rebuilds:
    """Rebuild a server with two releases in turn.

    :param upload: creates an image of busybox with a name and properties; returns its id
    """
    images = {
        release: upload(f"benchmark-{release}", os_command_line=_COMMAND.format(release, _PORT))
        for release in ("one", "two")
    }
    namespace = settings.tenant_namespace(demo.network.find_network("private").id)
    server = servers.create("benchmark-release", image="benchmark-one")
    _wait(namespace, address(server), "one")
    found = Rebuilds()
    for number in range(_ROUNDS + _WARM_UPS):
        release = ("two", "one")[number % 2]
        begin = time.monotonic()
        demo.compute.rebuild_server(server, image=images[release])
        last, first = _wait(namespace, address(server), release)
        servers.wait(server, lambda now: now.status == "ACTIVE")
        if number >= _WARM_UPS:
            found.first_answers.append(first - begin)
            found.gaps.append(first - last)
    servers.delete(server)
    return found


def _wait(namespace: str, server: str, release: str) -> tuple[float, float]:
    """Poll until a release answers; return the last other answer's time, and the first one's."""
    done = subprocess.run(
        inside(namespace, [sys.executable, "-c", _ASK, server, str(_PORT), release]),
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    if done.returncode != 0:
        raise StepFailed(
            f"The release {release} did not answer: {done.stderr.strip()}", "openstack server show"
        )
    last, first = map(float, done.stdout.split())
    return last, first
