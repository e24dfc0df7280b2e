# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
from nova import objects

from novadocker import exception
from novadocker.linux import passwords
from novadocker.privsep.guest.runtime import Login
from novadocker.virt.docker.guest import identity

UUID = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"
LONG = "a" * 63

LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


@pytest.mark.parametrize(
    ("hostname", "domain", "addresses", "hosts"),
    [
        ("web", "novalocal", ["10.0.0.5"], "10.0.0.5\tweb.novalocal web\n"),
        ("web", "", ["10.0.0.5"], "10.0.0.5\tweb\n"),
        ("web.example.org", "novalocal", ["10.0.0.5"], "10.0.0.5\tweb.example.org web\n"),
        ("web", "d", ["10.0.0.5", "fd00::5"], "10.0.0.5\tweb.d web\nfd00::5\tweb.d web\n"),
        ("web", "d", [], "127.0.1.1\tweb.d web\n"),
        (LONG, "d", ["::1"], f"::1\t{LONG}.d {LONG}\n"),
    ],
)
def test_hosts(hostname: str, domain: str, addresses: list[str], hosts: str) -> None:
    files = identity.etc_files(UUID, hostname, domain, addresses, [])
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
    assert identity.etc_files(UUID, "h", domain, [], servers)["resolv.conf"].decode() == expected


def test_resolv_conf_of_the_image_stays_without_nameservers() -> None:
    assert "resolv.conf" not in identity.etc_files(UUID, "h", "d", ["10.0.0.5"], [])


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [
        (LONG, LONG),
        (f"{LONG}.example.org", LONG),
        ("web." + "a" * 60, "web." + "a" * 60),
        ("web." + "a" * 61, "web"),
        ("b" * 70, "b" * 64),
    ],
)
def test_a_hostname_the_kernel_would_refuse(hostname: str, expected: str) -> None:
    assert identity.kernel_hostname(hostname) == expected
    files = identity.etc_files(UUID, hostname, "d", ["10.0.0.5"], [])
    assert files["hostname"].decode() == f"{expected}\n"


def test_machine_id_is_the_server_s() -> None:
    assert (
        identity.etc_files(UUID, "h", "", [], [])["machine-id"]
        == b"0e6e0b4b7a414f0b9f1a0f64e1f5a1c1\n"
    )


def image(**properties: str) -> objects.ImageMeta:
    return objects.ImageMeta.from_dict({"id": UUID, "properties": properties})


@pytest.mark.parametrize(
    ("key", "password", "properties", "expected"),
    [
        (None, None, {}, None),
        ("", "", {}, None),
        ("-----BEGIN CERTIFICATE-----", None, {}, None),
        (" ssh-rsa A x\n\n", None, {}, Login("root", b"ssh-rsa A x\n")),
        (None, "pw", {"os_admin_user": "debian"}, Login("debian", b"", "hashed pw", 7)),
        ("a\nb", "pw", {}, Login("root", b"a\nb\n", "hashed pw", 7)),
    ],
)
def test_login(
    instance: Any,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    password: str | None,
    properties: dict[str, str],
    expected: Login | None,
) -> None:
    monkeypatch.setattr(passwords, "hash_password", lambda text: f"hashed {text}")
    monkeypatch.setattr(passwords, "today", lambda: 7)
    instance.key_data = key
    assert identity.login(instance, image(**properties), password) == expected


@pytest.mark.parametrize("user", ["a b", "../root", "-x", "a:b", "", "x" * 33])
def test_a_property_that_names_no_user(user: str) -> None:
    if user:
        with pytest.raises(exception.InvalidImage, match="os_admin_user"):
            identity.admin_user(image(os_admin_user=user))
    else:
        assert identity.admin_user(image(os_admin_user=user)) == "root"


@pytest.mark.parametrize(
    ("key", "password"),
    [("k" * (1 << 20), None), ("a\0b", None), (None, "p\0w"), (None, "x" * 600)],
)
def test_a_login_that_cannot_be(instance: Any, key: str | None, password: str | None) -> None:
    instance.key_data = key
    with pytest.raises(exception.StartFailed) as caught:
        identity.login(instance, image(), password)
    assert password is None or password not in str(caught.value)
