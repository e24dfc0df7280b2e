# SPDX-License-Identifier: Apache-2.0
"""The nova-compute services of the cloud's hosts."""

import contextlib
from collections.abc import Collection, Iterator

from openstack.connection import Connection

from devcloud.settings import Host, Settings


@contextlib.contextmanager
def open_hosts(admin: Connection, settings: Settings, hosts: Collection[Host]) -> Iterator[None]:
    """Enable only these of the cloud's hosts; restore all hosts' states when the block ends."""
    names = {host.name for host in hosts}
    with contextlib.ExitStack() as stack:
        for service in admin.compute.services(binary="nova-compute"):
            if service.host not in {host.name for host in settings.hosts}:
                continue
            if service.host in names and service.status == "disabled":
                admin.compute.enable_service(service)
                stack.callback(admin.compute.disable_service, service)
            elif service.host not in names and service.status == "enabled":
                admin.compute.disable_service(service, disabled_reason="servers go elsewhere")
                stack.callback(admin.compute.enable_service, service)
        yield
