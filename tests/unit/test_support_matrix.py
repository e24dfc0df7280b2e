# SPDX-License-Identifier: Apache-2.0
"""``docs/support-matrix.ini`` agrees with what the driver implements."""

import configparser
import importlib.util
import inspect
from types import ModuleType

import pytest
from nova.virt import driver as nova_driver

from novadocker.virt.docker.driver import DockerDriver
from tests import CHECKOUT

DOCS = CHECKOUT / "docs"

METHODS = {
    "operation.attach-volume": "attach_volume",
    "operation.detach-volume": "detach_volume",
    "operation.extend-volume": "extend_volume",
    "operation.attach-interface": "attach_interface",
    "operation.detach-interface": "detach_interface",
    "operation.maintenance-mode": "host_maintenance_mode",
    "operation.rebuild": "rebuild",
    "operation.get-guest-info": "get_info",
    "operation.get-host-uptime": "get_host_uptime",
    "operation.get-host-ip": "get_host_ip_addr",
    "operation.live-migrate": "live_migration",
    "operation.force-live-migration-to-complete": "live_migration_force_complete",
    "operation.abort-in-progress-live-migration": "live_migration_abort",
    "operation.launch": "spawn",
    "operation.pause": "pause",
    "operation.unpause": "unpause",
    "operation.reboot": "reboot",
    "operation.rescue": "rescue",
    "operation.resize": "finish_migration",
    "operation.suspend": "suspend",
    "operation.resume": "resume",
    "operation.set-admin-password": "set_admin_password",
    "operation.snapshot": "snapshot",
    "operation.swap-volume": "swap_volume",
    "operation.terminate": "destroy",
    "operation.trigger-crash-dump": "trigger_crash_dump",
    "operation.quiesce": "quiesce",
    "operation.unquiesce": "unquiesce",
    "operation.cache-images": "cache_image",
    "console.serial.log": "get_console_output",
    "console.serial.interactive": "get_serial_console",
    "guest.setup.inject.networking": "inject_network_info",
    "storage.block": "get_volume_connector",
    "storage.block.backend.fibrechannel": "get_volume_connector",
    "storage.block.backend.iscsi": "get_volume_connector",
    "storage.block.backend.iscsi.auth.chap": "get_volume_connector",
}
"""The method of the driver by which Nova uses each feature."""

CAPABILITIES = {
    "operation.attach-tagged-interface": "supports_tagged_attach_interface",
    "operation.attach-tagged-volume": "supports_tagged_attach_volume",
    "operation.device-tags": "supports_device_tagging",
    "operation.evacuate": "supports_evacuate",
    "operation.extend-volume": "supports_extend_volume",
    "operation.multiattach-volume": "supports_multiattach",
    "operation.trusted-certs": "supports_trusted_certs",
    "operation.cache-images": "has_imagecache",
    "operation.boot-emulated-tpm": "supports_vtpm",
    "operation.file-backed-memory": "supports_mem_backing_file",
    "operation.uefi-boot": "supports_secure_boot",
    "storage.image": "supports_image_type_raw",
}
"""The capability of ``ComputeDriver`` by which Nova asks for each feature."""

WITHOUT_METHOD = {
    # Nova rebuilds these servers by attach_volume.
    "operation.rebuild-volume-backed": "complete",
    "operation.encrypted-volume": "missing",
    # The driver builds the drive in spawn, writes files there and holds the limits of quota:disk_*.
    "guest.setup.configdrive": "complete",
    "guest.setup.inject.file": "complete",
    "guest.disk.rate-limit": "complete",
    "guest.disk.autoconfig": "missing",
    # The driver refuses these types of consoles, and Nova has no RDP any more.
    "console.rdp": "missing",
    "console.spice": "missing",
    "console.vnc": "missing",
    # A container has no firmware, no processor and no PCI device of its own.
    "operation.report-cpu-traits": "missing",
    "operation.port-with-resource-request": "missing",
    "operation.boot-encrypted-vm": "missing",
    "operation.boot-stateless-firmware": "missing",
}


@pytest.fixture(scope="module")
def matrix() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string((DOCS / "support-matrix.ini").read_text())
    return parser


def supported(matrix: configparser.ConfigParser, feature: str) -> bool:
    """Return True if the file says that the driver has the feature, wholly or in part."""
    return matrix[feature]["driver.docker"] in ("complete", "partial")


def implements(method: str) -> bool:
    """Return True if the driver does not leave the method to Nova's ``NotImplementedError``."""
    base = getattr(nova_driver.ComputeDriver, method)
    own = getattr(DockerDriver, method)
    return own is not base or "raise NotImplementedError" not in inspect.getsource(base)


@pytest.mark.parametrize("feature", sorted(METHODS))
def test_a_feature_has_its_method(matrix: configparser.ConfigParser, feature: str) -> None:
    assert hasattr(nova_driver.ComputeDriver, METHODS[feature])
    assert supported(matrix, feature) == implements(METHODS[feature])


@pytest.mark.parametrize("feature", sorted(CAPABILITIES))
def test_a_feature_has_its_capability(matrix: configparser.ConfigParser, feature: str) -> None:
    # Older releases of Nova lack some of the capabilities.
    found = DockerDriver.capabilities.get(CAPABILITIES[feature], False)
    assert supported(matrix, feature) == found


def test_every_feature_is_judged(matrix: configparser.ConfigParser) -> None:
    features = set(matrix.sections()) - {"driver.docker"}
    assert features == METHODS.keys() | CAPABILITIES.keys() | WITHOUT_METHOD.keys()
    assert not WITHOUT_METHOD.keys() & (METHODS.keys() | CAPABILITIES.keys())
    found = {feature: matrix[feature]["driver.docker"] for feature in WITHOUT_METHOD}
    assert found == WITHOUT_METHOD


def test_what_nova_demands_of_every_driver_is_there(matrix: configparser.ConfigParser) -> None:
    demanded = [name for name in matrix.sections() if matrix[name].get("status") == "mandatory"]
    assert demanded
    assert [name for name in demanded if not supported(matrix, name)] == []
    for group in ("choice(console)", "choice(guest.setup)"):
        chosen = [name for name in matrix.sections() if matrix[name].get("status") == group]
        assert any(supported(matrix, name) for name in chosen), group


@pytest.fixture(scope="module")
def extension() -> ModuleType:
    # The environments of tox with older releases of Nova have no Sphinx.
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location("support_matrix", DOCS / "support_matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_a_row_for_each_feature(
    extension: ModuleType, matrix: configparser.ConfigParser
) -> None:
    rows = extension.read_matrix(DOCS / "support-matrix.ini")
    assert len(rows) == len(matrix.sections()) - 1
    assert ("Stop instance CPUs (pause)", "optional", "✔ yes", "") in rows
    assert [row[2] for row in rows if row[0] == "Suspend instance"] == ["✔ in part"]
