# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from typing import Any

import pytest

from novadocker import exception, naming
from novadocker.virt.docker.model import ContainerSpec, Isolation, Limits
from novadocker.virt.docker.operations import spec
from tests.unit import fakes

LIMITS = Limits(cpu_shares=1024, memory_bytes=1 << 28, swap_bytes=0, pids=100)


def build(instance: Any, image_meta: Any, image: Any = fakes.IMAGE) -> ContainerSpec:
    return spec.container_spec(
        instance,
        image_meta,
        image,
        LIMITS,
        Isolation(),
        runtime="novadocker",
        console_log_max_mb=10,
    )


def test_labels_are_all_ours(instance: Any, image_meta: Any) -> None:
    built = build(instance, image_meta)
    assert built.labels == {
        naming.LABEL_UUID: instance.uuid,
        naming.LABEL_NAME: instance.name,
        naming.LABEL_PROJECT: instance.project_id,
        naming.LABEL_FLAVOR: "d1.tiny",
        naming.LABEL_HOST: instance.host or "",
        naming.LABEL_SCHEMA: "1",
        naming.LABEL_RESCUE: "",
    }
    assert built.name == f"nova-{instance.uuid}"


@pytest.mark.parametrize(
    ("property_", "entrypoint", "command"),
    [
        (None, (), ()),
        ("", (), ()),
        ("/sbin/init", ("/sbin/init",), ()),
        ("sh -c 'echo a  b; sleep 1'", ("sh",), ("-c", "echo a  b; sleep 1")),
    ],
)
def test_command_line(
    instance: Any, image_meta: Any, property_: str | None, entrypoint: Any, command: Any
) -> None:
    if property_ is not None:
        image_meta.properties.os_command_line = property_
    built = build(instance, image_meta)
    assert (built.entrypoint, built.command) == (entrypoint, command)


@pytest.mark.parametrize(
    ("entrypoint", "command", "property_", "systemd"),
    [
        ((), ("/sbin/init",), None, True),
        ((), ("/lib/systemd/systemd", "--log-level=info"), None, True),
        (("/usr/lib/systemd/systemd",), (), None, True),
        ((), ("/usr/sbin/init",), None, True),
        ((), ("nginx",), "/sbin/init", True),
        ((), ("/sbin/init",), "nginx", False),
        ((), ("sh", "-c", "/sbin/init"), None, False),
        (("tini", "--"), ("/sbin/init",), None, False),
        ((), ("/sbin/openrc-init",), None, False),
        ((), ("systemd-x",), None, False),
    ],
)
def test_systemd(
    instance: Any,
    image_meta: Any,
    entrypoint: tuple[str, ...],
    command: tuple[str, ...],
    property_: str | None,
    systemd: bool,
) -> None:
    if property_ is not None:
        image_meta.properties.os_command_line = property_
    image = replace(fakes.IMAGE, entrypoint=entrypoint, command=command)
    built = build(instance, image_meta, image)
    assert built.systemd is systemd
    assert built.stop_signal == ("SIGRTMIN+3" if systemd else "")
    built = build(instance, image_meta, replace(image, stop_signal="SIGINT"))
    assert built.stop_signal == ""


def test_command_line_that_cannot_be_split(instance: Any, image_meta: Any) -> None:
    image_meta.properties.os_command_line = "sh -c 'unclosed"
    with pytest.raises(exception.InvalidImage, match="os_command_line"):
        build(instance, image_meta)


@pytest.mark.parametrize(
    ("entrypoint", "command", "good"),
    [((), (), False), (("a",), (), True), ((), ("b",), True)],
)
def test_image_without_command(
    instance: Any, image_meta: Any, entrypoint: Any, command: Any, good: bool
) -> None:
    image = replace(fakes.IMAGE, entrypoint=entrypoint, command=command)
    if good:
        assert build(instance, image_meta, image).entrypoint == ()
        return
    with pytest.raises(exception.InvalidImage, match="no command"):
        build(instance, image_meta, image)


@pytest.mark.parametrize(
    ("hostname", "expected"), [("web-1", "web-1"), ("a" * 255, "a" * 64), ("", None)]
)
def test_hostname(instance: Any, image_meta: Any, hostname: str, expected: str | None) -> None:
    instance.hostname = hostname
    assert build(instance, image_meta).hostname == (expected or instance.uuid)


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("nova-u", {naming.LABEL_UUID: "u", naming.LABEL_SCHEMA: "1"}, True),
        ("nova-v", {naming.LABEL_UUID: "u", naming.LABEL_SCHEMA: "1"}, False),
        ("nova-u-away", {naming.LABEL_UUID: "u", naming.LABEL_SCHEMA: "1"}, False),
        ("nova-u", {naming.LABEL_UUID: "u"}, False),
        ("nova-u", {naming.LABEL_UUID: "u", naming.LABEL_SCHEMA: "2"}, False),
        ("other", {}, False),
    ],
)
def test_owned(name: str, labels: dict[str, str], expected: bool) -> None:
    assert naming.owned(name, labels) is expected


def test_an_image_with_the_largest_settings() -> None:
    text = ("x" * (32 << 10), "y" * (32 << 10))
    image = replace(
        fakes.IMAGE,
        environment=text,
        labels=text,
        entrypoint=text[:1],
        command=text[1:],
        volumes=tuple(f"/v{number}" for number in range(100)),
    )
    spec.check_image_settings("an id", image)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"environment": ("A=" + "x" * 65_535,)}, r"environment variables \(ENV\) of 65537 bytes"),
        ({"environment": ("ж" * 40_000,)}, "of 80000 bytes, more than 65536"),
        ({"labels": ("name", "x" * 65_536)}, r"labels \(LABEL\) of 65540 bytes"),
        ({"entrypoint": ("x" * 40_000,), "command": ("x" * 40_000,)}, "ENTRYPOINT, CMD.* 80000"),
        ({"working_folder": "/" * 70_000}, r"WORKDIR\) of 70000 bytes"),
        ({"volumes": ("/" + "x" * 70_000,)}, r"VOLUME\) of 70001 bytes"),
        ({"volumes": tuple(map(str, range(101)))}, "101 volumes .* more than 100"),
    ],
)
def test_an_image_with_too_large_settings(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(exception.InvalidImage, match=reason):
        spec.check_image_settings("an id", replace(fakes.IMAGE, **changes))
