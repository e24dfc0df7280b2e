# SPDX-License-Identifier: Apache-2.0
import pytest

from novadocker import exception
from novadocker.extra_specs import Nesting
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
    assert (found.shm_bytes, found.oom_score_adj, found.nesting) == (32 << 20, 500, Nesting.NO)


@pytest.mark.parametrize(
    ("word", "nesting"),
    [("true", Nesting.UNPRIVILEGED), ("false", Nesting.NO), ("host", Nesting.HOST)],
)
def test_nesting(word: str, nesting: Nesting) -> None:
    found = isolation.isolation({"docker:nesting": word})
    assert found.nesting == nesting
    assert ("SYS_ADMIN" in found.capabilities) is (nesting == Nesting.HOST)
    assert (found.capabilities == ("ALL",)) is (nesting == Nesting.UNPRIVILEGED)
    assert ("/var/lib/docker" in found.volumes) is (nesting == Nesting.UNPRIVILEGED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("docker:nesting", "true"),
        ("docker:capabilities", "SYS_ADMIN"),
        ("docker:capabilities", "NET_ADMIN,DAC_READ_SEARCH"),
    ],
)
def test_what_needs_a_user_namespace(name: str, value: str) -> None:
    with pytest.raises(exception.InvalidLimits, match="needs a user namespace"):
        isolation.check_user_namespace(isolation.isolation({name: value}))


@pytest.mark.parametrize(
    "asked", [{}, {"docker:nesting": "host"}, {"docker:capabilities": "NET_ADMIN,MKNOD"}]
)
def test_what_needs_no_user_namespace(asked: dict[str, str]) -> None:
    isolation.check_user_namespace(isolation.isolation(asked))


def test_a_container_that_was_nesting_as_the_hosts_root() -> None:
    more = {"docker:capabilities": "SYS_NICE"}
    true, host, plain = ({"docker:nesting": word, **more} for word in ("true", "host", "false"))
    assert isolation.of_present(true, user_namespace=False) == isolation.isolation(host)
    assert isolation.of_present(true, user_namespace=True) == isolation.isolation(true)
    for asked in (host, plain):
        assert isolation.of_present(asked, user_namespace=False) == isolation.isolation(asked)
