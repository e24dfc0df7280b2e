# SPDX-License-Identifier: Apache-2.0
import pytest

from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import Isolation, ResourceLimit


def test_default() -> None:
    found = isolation.isolation({})
    assert found == Isolation(capabilities=isolation.CAPABILITIES)
    assert not {"NET_ADMIN", "SYS_ADMIN", "MKNOD", "SYS_MODULE", "SYS_RAWIO"} & set(
        found.capabilities
    )


def test_what_is_asked_for() -> None:
    found = isolation.isolation(
        {
            "docker:capabilities": "NET_ADMIN,SYS_NICE",
            "docker:devices": "/dev/fuse",
            "docker:ulimit_nofile": "10:20",
            "docker:ulimit_core": "0",
            "docker:shm_size_mb": "32",
            "docker:oom_score_adj": "500",
            "docker:sysctl:net.ipv4.tcp_rmem": "4096  8192 16384",
            "docker:sysctl:kernel.msgmax": "65536",
        }
    )
    assert set(found.capabilities) == {*isolation.CAPABILITIES, "NET_ADMIN", "SYS_NICE"}
    assert found.devices == ("/dev/fuse",)
    assert found.sysctls == (
        ("kernel.msgmax", "65536"),
        ("net.ipv4.tcp_rmem", "4096 8192 16384"),
    )
    assert found.resource_limits == (ResourceLimit("core", 0, 0), ResourceLimit("nofile", 10, 20))
    assert (found.shm_bytes, found.oom_score_adj, found.nesting) == (32 << 20, 500, False)


@pytest.mark.parametrize(("word", "nesting"), [("true", True), ("false", False)])
def test_nesting(word: str, nesting: bool) -> None:
    found = isolation.isolation({"docker:nesting": word})
    assert found.nesting is nesting
    assert ("SYS_ADMIN" in found.capabilities) is nesting
