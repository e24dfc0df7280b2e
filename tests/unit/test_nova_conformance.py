# SPDX-License-Identifier: Apache-2.0
"""Nova's own test-case for drivers, over fakes of our modules.

It passes where a driver implements nothing, so the set of methods that raise NotImplementedError
is pinned: ``ComputeDriver`` declares them, and the driver must override the rest.
"""

import inspect
import unittest
from typing import Any
from unittest import mock

import pytest
from nova import conf, test
from nova.tests.unit.virt import test_virt_drivers as nova_tests
from nova.virt import driver as nova_driver

from novadocker.virt.docker import driver as driver_module
from novadocker.virt.docker.operations import build
from tests.unit import fakes

# each with the issue of this project that brings it, or why it never comes
UNSUPPORTED = {
    # volumes and shares
    "attach_volume",
    "detach_volume",
    "extend_volume",
    "swap_volume",
    "get_all_volume_usage",
    "get_volume_connector",
    "volume_snapshot_create",
    "volume_snapshot_delete",
    "block_stats",
    "is_share_mounted",
    "mount_share",
    "umount_share",
    # consoles
    # resize and migration
    "check_instance_shared_storage_local",
    "check_instance_shared_storage_remote",
    "get_instance_disk_info",
    # images
    "quiesce",
    "unquiesce",
    # the manager's defaults do
    "default_device_names_for_instance",
    "default_root_device_name",
    "get_device_name_for_instance",
    "poll_rebooting_instances",
    "soft_delete",
    "restore",
    # live migration
    "check_can_live_migrate_source",
    "cleanup_live_migration_destination_check",
    "live_migration",
    "live_migration_abort",
    "live_migration_force_complete",
    "post_live_migration_at_destination",
    "post_live_migration_at_source",
    "pre_live_migration",
    "rollback_live_migration_at_destination",
    # the hardware of the host is not this driver's
    "get_host_cpu_stats",
    "host_maintenance_mode",
    "host_power_action",
    "power_update_event",
    "set_host_enabled",
    "trigger_crash_dump",
}


def test_the_unsupported_set_is_pinned() -> None:
    base = nova_driver.ComputeDriver
    abstract = {
        name
        for name, function in inspect.getmembers(base, inspect.isfunction)
        if "raise NotImplementedError" in inspect.getsource(function)
        and getattr(driver_module.DockerDriver, name) is function
    }
    # older Novas lack some of the methods
    assert abstract == {name for name in UNSUPPORTED if hasattr(base, name)}


class DriverConformance(nova_tests._VirtDriverTestCase, test.TestCase):  # type: ignore[misc]
    """All tests of Nova's; the driver's own modules below it are fakes."""

    # run below: Nova's tearDown deletes attributes that pytest's own runner sets
    __test__ = False

    def _get_running_instance(self, obj: bool = True) -> Any:
        # the flavor of Nova's test asks for an ephemeral disk, which the driver refuses
        with mock.patch.object(build, "refuse_disks"):
            return super()._get_running_instance(obj)

    def setUp(self) -> None:
        self.driver_module = "novadocker.virt.docker.driver.DockerDriver"
        network = fakes.FakeNetwork()
        for name, fake in {
            "Engine": lambda *_: fakes.FakeEngine(),
            "Enforcement": lambda *_: fakes.FakeEnforcement(),
            "ImageStore": fakes.FakeImages,
            "Lxcfs": fakes.FakeLxcfs,
            "Loads": fakes.FakeLoads,
            "vifs": network,
            "netns": network,
            "interior": fakes.FakeInterior(),
            "tags": fakes.FakeTags(),
            "drives": fakes.FakeDrives(),
        }.items():
            for module, own in fakes.places(name):
                patcher = mock.patch.object(module, own, fake)
                patcher.start()
                self.addCleanup(patcher.stop)
        # Nova's tests have no database of moves
        patcher = mock.patch.object(driver_module.nova_records, "resume_cut_off")
        patcher.start()
        self.addCleanup(patcher.stop)
        super().setUp()
        # Nova 31 replaces Event.wait, without which no thread starts in order
        self.flags(vif_plugging_timeout=0)
        self.connection: Any
        self.connection.init_host("myhostname")

    def test_migrate_disk_and_power_off(self) -> None:
        # where Nova's test resizes to, and a disk of its flavor: both are refused
        with (
            mock.patch.object(self.connection, "get_host_ip_addr", return_value="dest_host"),
            mock.patch.object(driver_module.resize, "refuse_disks"),
        ):
            super().test_migrate_disk_and_power_off()


NOT_TOLERANT = {
    # these need live migration and do not tolerate NotImplementedError
    "test_live_migration",
    "test_live_migration_force_complete",
    # nor these that such a console is unavailable
    "test_get_vnc_console",
    "test_get_spice_console",
    "test_get_mks_console",
}


@pytest.mark.parametrize(
    "name", sorted(set(unittest.TestLoader().getTestCaseNames(DriverConformance)) - NOT_TOLERANT)
)
def test_conformance(name: str) -> None:
    conf.CONF.reset()
    result = unittest.TestResult()
    DriverConformance(name).run(result)
    assert result.testsRun == 1
    assert not result.skipped, result.skipped
    assert result.wasSuccessful(), "".join(text for _, text in result.errors + result.failures)
