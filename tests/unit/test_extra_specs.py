# SPDX-License-Identifier: Apache-2.0
"""The extra specs of ``docker:``, as the driver and as nova-api parse them."""

import json
from importlib import metadata
from typing import Any

import pytest
from nova import exception as nova_exception
from nova.api.validation.extra_specs import validators

from novadocker import extra_spec_validators, extra_specs
from novadocker.extra_specs import Nesting
from tests import CHECKOUT

METADEFS = CHECKOUT / "etc" / "glance" / "metadefs" / "novadocker.json"


@pytest.fixture
def nova_api(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return Nova's own check of a new flavor, with this project's validators."""
    ours = {validator.name: validator for validator in extra_spec_validators.register()}
    monkeypatch.setattr(validators, "VALIDATORS", ours)
    monkeypatch.setattr(validators, "NAMESPACES", {"docker"})
    return validators.validate


GOOD = [
    ("docker:pids_limit", "16", 16),
    ("docker:pids_limit", "4194304", 4194304),
    ("docker:shm_size_mb", "64", 64),
    ("docker:oom_score_adj", "0", 0),
    ("docker:ulimit_nofile", "1024", (1024, 1024)),
    ("docker:ulimit_nofile", "1024:4096", (1024, 4096)),
    ("docker:ulimit_nofile", "1024:-1", (1024, -1)),
    ("docker:ulimit_memlock", "-1", (-1, -1)),
    ("docker:capabilities", "NET_ADMIN", ("NET_ADMIN",)),
    ("docker:capabilities", "NET_ADMIN, SYS_NICE", ("NET_ADMIN", "SYS_NICE")),
    ("docker:devices", "/dev/fuse,/dev/net/tun", ("/dev/fuse", "/dev/net/tun")),
    ("docker:devices", "/dev/nvidia0", ("/dev/nvidia0",)),
    ("docker:capabilities", "SYS_ADMIN", ("SYS_ADMIN",)),
    ("docker:nesting", "true", Nesting.UNPRIVILEGED),
    ("docker:nesting", "yes", Nesting.UNPRIVILEGED),
    ("docker:nesting", "False", Nesting.NO),
    ("docker:nesting", "host", Nesting.HOST),
    ("docker:sysctl:net.core.somaxconn", "1024", "1024"),
    ("docker:sysctl:net.ipv4.ip_local_port_range", "1024  65000", "1024 65000"),
    ("docker:sysctl:kernel.sem", "250 32000 32 128", "250 32000 32 128"),
    ("docker:sysctl:kernel.shmmax", "9223372036854775807", "9223372036854775807"),
]
BAD = [
    ("docker:pids_limit", "15"),
    ("docker:pids_limit", "4194305"),
    ("docker:pids_limit", "1_000"),
    ("docker:pids_limit", ""),
    ("docker:shm_size_mb", "0"),
    ("docker:oom_score_adj", "-1"),
    ("docker:ulimit_nofile", "2:1"),
    ("docker:ulimit_nofile", "-1:1"),
    ("docker:ulimit_nofile", "1:2:3"),
    ("docker:capabilities", "SYS_RAWIO"),
    ("docker:capabilities", "SYS_MODULE"),
    ("docker:capabilities", "CAP_NET_ADMIN"),
    ("docker:capabilities", "NET_ADMIN,"),
    ("docker:capabilities", "ALL"),
    ("docker:devices", "/etc/passwd"),
    ("docker:devices", "/dev/../etc"),
    ("docker:devices", "/dev/./x"),
    ("docker:devices", "/dev"),
    ("docker:devices", "/dev/fuse:/dev/x"),
    ("docker:nesting", "perhaps"),
    ("docker:nesting", "Host"),
    ("docker:sysctl:net.core.somaxconn", ""),
    ("docker:sysctl:net.core.somaxconn", "0"),
    ("docker:sysctl:net.core.somaxconn", "65536"),
    ("docker:sysctl:net.core.somaxconn", "-1"),
    ("docker:sysctl:net.core.somaxconn", "1\n"),
    ("docker:sysctl:net.core.somaxconn", "1 2"),
    ("docker:sysctl:net.ipv4.tcp_rmem", "4096 4096"),
    ("docker:sysctl:net.ipv4.tcp_rmem", "4096 4096 67108865"),
    ("docker:sysctl:kernel.shmmax", "9223372036854775808"),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_good_value(nova_api: Any, name: str, text: str, value: object) -> None:
    assert extra_specs.ALL[name].parse(text) == value
    nova_api(name, text)


@pytest.mark.parametrize(("name", "text"), BAD)
def test_bad_value(nova_api: Any, name: str, text: str) -> None:
    with pytest.raises(ValueError, match=name):
        extra_specs.ALL[name].parse(text)
    with pytest.raises(nova_exception.ValidationError):
        nova_api(name, text)


@pytest.mark.parametrize(
    "name",
    [
        "docker:pids",
        "docker:ulimit_nproc",
        "docker:",
        "docker:sysctl:",
        # These are the host's, in which all servers take part.
        "docker:sysctl:vm.max_map_count",
        "docker:sysctl:kernel.core_pattern",
        "docker:sysctl:fs.file-max",
        "docker:sysctl:net.ipv4.tcp_mem",
        # These weaken the isolation of a server's network.
        "docker:sysctl:net.ipv4.ip_forward",
        "docker:sysctl:net.ipv4.conf.all.forwarding",
        "docker:sysctl:net.ipv4.conf.eth0.rp_filter",
        "docker:sysctl:net.ipv4.conf.all.arp_announce",
        "docker:sysctl:net.ipv6.conf.all.accept_ra",
    ],
)
def test_unknown_name(nova_api: Any, name: str) -> None:
    with pytest.raises(nova_exception.ValidationError, match="does not appear"):
        nova_api(name, "1")
    with pytest.raises(ValueError, match="is not an extra spec"):
        extra_specs.asked({name: "1"}, {}, ())


def test_nova_finds_the_validators() -> None:
    found = metadata.entry_points(group="nova.api.extra_spec_validators", name="docker")
    assert [entry.load() for entry in found] == [extra_spec_validators]


def test_the_sysctls_are_documented() -> None:
    documented = " ".join((CHECKOUT / "docs" / "limits.rst").read_text().split())
    assert ", ".join(f"``{spec.sysctl}``" for spec in extra_specs.SYSCTLS) + "." in documented


def test_metadata_definitions_say_the_same() -> None:
    namespace = json.loads(METADEFS.read_text())
    defined = namespace["properties"]
    assert {f"docker:{name}" for name in defined} == extra_specs.ALL.keys()
    assert {row["name"] for row in namespace["resource_type_associations"]} == {
        "OS::Nova::Flavor",
        "OS::Glance::Image",
    }
    for name, definition in defined.items():
        spec = extra_specs.ALL[f"docker:{name}"]
        assert (definition["title"], definition["description"]) == (spec.title, spec.description)
        if isinstance(spec, extra_specs.Number):
            assert (definition["minimum"], definition["maximum"]) == (spec.minimum, spec.maximum)
