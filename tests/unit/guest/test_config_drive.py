# SPDX-License-Identifier: Apache-2.0
import json
import os
from pathlib import Path
from typing import Any

import pytest
from nova import objects
from nova.api.metadata import base
from oslo_serialization import base64

from novadocker import exception
from novadocker.virt.docker.guest import config_drive


@pytest.fixture
def described(instance: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an instance whose metadata can be built without a cloud."""
    monkeypatch.setattr(base.security_group_api, "get_instance_security_groups", lambda *_: [])
    monkeypatch.setattr(base, "_format_instance_mapping", lambda _: {})
    instance.ec2_ids = objects.EC2Ids(ami_id="a", instance_id="i", kernel_id=None, ramdisk_id=None)
    instance.keypairs = objects.KeyPairList(objects=[])
    instance.device_metadata = instance.numa_topology = None
    instance.metadata = {"role": "web"}
    instance.system_metadata = {}
    return instance


def test_files(described: Any, network_info: Any) -> None:
    data = bytes(range(256)) * 256
    described.user_data = base64.encode_as_text(data)
    files, image = config_drive.build(described, network_info, [("/etc/motd", b"hi")], "pw")
    assert image == b""
    assert files["openstack/latest/user_data"] == data
    found = json.loads(files["openstack/latest/meta_data.json"])
    assert found["uuid"] == described.uuid
    assert found["hostname"] == "web-1.novalocal"
    assert found["meta"] == {"role": "web"}
    assert found["admin_pass"] == "pw"
    assert found["files"][0]["path"] == "/etc/motd"
    assert files[f"openstack{found['files'][0]['content_path']}"] == b"hi"
    assert "openstack/latest/vendor_data.json" in files
    assert "openstack/latest/network_data.json" in files


def test_no_password(described: Any, network_info: Any) -> None:
    files, _ = config_drive.build(described, network_info, [], None)
    assert "admin_pass" not in json.loads(files["openstack/latest/meta_data.json"])


@pytest.mark.parametrize(("drive", "value"), [("True", "true"), ("True", "1"), ("", "true")])
def test_wants_device(instance: Any, drive: str, value: str) -> None:
    instance.config_drive = drive
    instance.launched_at = None
    instance.system_metadata = {"image_img_config_drive_device": value}
    assert config_drive.wants_device(instance) is bool(drive)
    instance.system_metadata = {"image_img_config_drive_device": "false"}
    assert config_drive.wants_device(instance) is False
    instance.system_metadata = {}
    assert config_drive.wants_device(instance) is False


def test_image_of_the_device(
    described: Any, network_info: Any, options: Any, tmp_path: Path
) -> None:
    described.config_drive = "True"
    described.system_metadata = {"image_img_config_drive_device": "true"}
    program = tmp_path / "mkisofs"
    program.write_text('#!/bin/sh\n[ "$1" = -o ] && ls -R "$0" >/dev/null && echo "$*" >"$2"\n')
    program.chmod(0o755)
    options(instances_path=str(tmp_path), mkisofs_cmd=str(program))
    _, image = config_drive.build(described, network_info, [], None)
    assert b"-V config-2" in image
    assert os.listdir(tmp_path) == ["mkisofs"]
    options(mkisofs_cmd=str(tmp_path / "absent"))
    with pytest.raises(exception.StartFailed, match="image"):
        config_drive.build(described, network_info, [], None)
    options(config_drive_format="vfat")
    with pytest.raises(exception.StartFailed, match="vfat"):
        config_drive.build(described, network_info, [], None)
    described.system_metadata = {"image_img_config_drive_device": "maybe"}
    with pytest.raises(exception.InvalidImage, match="is not a boolean"):
        config_drive.build(described, network_info, [], None)


@pytest.mark.parametrize(
    ("asked", "forced", "image", "expected"),
    [
        ("", False, "optional", False),
        ("True", False, "optional", True),
        ("", True, "optional", True),
        ("", False, "mandatory", True),
    ],
)
def test_required(
    instance: Any, options: Any, asked: str, forced: bool, image: str, expected: bool
) -> None:
    instance.config_drive = asked
    instance.launched_at = None
    instance.system_metadata = {"image_img_config_drive": image}
    options(force_config_drive=forced)
    assert config_drive.required(instance) is expected
