# SPDX-License-Identifier: Apache-2.0
"""The operations of Nova on a server that may run containers itself."""

from tests import archives
from tests.engine.hosts import ComputeHost
from tests.engine.servers import Server

SNAPSHOT = "5c5c5c5c-0000-4000-8000-000000000002"
# With cgroup v1 each hierarchy, with v2 the only one.
DIVIDE = """
set -e
cd /sys/fs/cgroup
for folder in memory .; do [ ! -w $folder/cgroup.procs ] || mkdir -p $folder/inside; done
ls -d memory/inside inside 2>/dev/null | wc -l
mount -t tmpfs none /mnt 2>/dev/null || { mkdir -p /mnt; mount -t tmpfs none /mnt; }
grep -c /mnt /proc/mounts
"""


def shell(host: ComputeHost, server: Server, script: str) -> str:
    call = host.client.exec_create(server.name, ["sh", "-c", script])["Id"]
    output: bytes = host.client.exec_start(call)
    return output.decode()


def test_the_life_of_a_server_that_runs_containers(compute_host: ComputeHost) -> None:
    nova = compute_host.start_nova()
    server = nova.spawn(compute_host.new_server("nesting", (1,)))
    try:
        for path in ("docker", "containerd", "containers"):
            assert f" /var/lib/{path} " in shell(compute_host, server, "cat /proc/mounts")
        assert shell(compute_host, server, DIVIDE) == "1\n1\n"
        made = "echo layer >/var/lib/docker/file; chown 5 /var/lib/docker/file"
        assert shell(compute_host, server, made) == ""
        for kind in ("SOFT", "HARD"):
            nova.reboot(server, kind)
            assert shell(compute_host, server, "cat /var/lib/docker/file") == "layer\n"
            assert shell(compute_host, server, DIVIDE) == "1\n1\n"
        nova.power_off(server)
        nova.power_on(server)
        assert shell(compute_host, server, DIVIDE) == "1\n1\n"
        server = nova.rescue(server)
        rescued = "cat /rescue/var/lib/docker/file"
        assert shell(compute_host, server, rescued) == "layer\n"
        server = nova.unrescue(server)
        nova.snapshot(server, SNAPSHOT)
        user, _ = archives.owners(compute_host.glance.folder / SNAPSHOT)["var/lib/docker/file"]
        assert user == 5
    finally:
        nova.destroy(server)
        nova.stop()
