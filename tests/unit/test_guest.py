# SPDX-License-Identifier: Apache-2.0
import pytest

from novadocker.virt.docker import guest

LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


@pytest.mark.parametrize(
    ("hostname", "domain", "addresses", "hosts"),
    [
        ("web", "novalocal", ["10.0.0.5"], "10.0.0.5\tweb.novalocal web\n"),
        ("web", "", ["10.0.0.5"], "10.0.0.5\tweb\n"),
        ("web.example.org", "novalocal", ["10.0.0.5"], "10.0.0.5\tweb.example.org web\n"),
        ("web", "d", ["10.0.0.5", "fd00::5"], "10.0.0.5\tweb.d web\nfd00::5\tweb.d web\n"),
        ("web", "d", [], "127.0.1.1\tweb.d web\n"),
    ],
)
def test_hosts(hostname: str, domain: str, addresses: list[str], hosts: str) -> None:
    files = guest.etc_files(hostname, domain, addresses, [])
    assert files["hosts"].decode() == LOCAL + hosts
    assert files["hostname"].decode() == hostname + "\n"


@pytest.mark.parametrize(
    ("domain", "servers", "expected"),
    [
        ("d", ["1.1.1.1"], "search d\nnameserver 1.1.1.1\n"),
        ("", ["a", "b", "c", "d"], "nameserver a\nnameserver b\nnameserver c\n"),
    ],
)
def test_resolv_conf(domain: str, servers: list[str], expected: str) -> None:
    assert guest.etc_files("h", domain, [], servers)["resolv.conf"].decode() == expected


def test_resolv_conf_of_the_image_stays_without_nameservers() -> None:
    assert "resolv.conf" not in guest.etc_files("h", "d", ["10.0.0.5"], [])
