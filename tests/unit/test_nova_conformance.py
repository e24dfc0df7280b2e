# SPDX-License-Identifier: Apache-2.0
"""Nova's own test case for drivers, on fakes of this project's modules.

The test case passes where a driver implements nothing, so this module pins the set of methods that
raise NotImplementedError: ``ComputeDriver`` declares them, and the driver must override the rest.
"""

import functools
import inspect
import unittest
from typing import Any
from unittest import mock

import fixtures
import pytest
from nova import conf, test
from nova.tests.unit import utils as nova_utils
from nova.tests.unit.virt import test_virt_drivers as nova_tests
from nova.virt import driver as nova_driver

from novadocker.virt.docker.driver import DockerDriver
from tests.unit import fakes

# Each method has the issue of this project that implements it, or the reason why none does.
UNSUPPORTED = {
    # Volumes and shares.
    "swap_volume",
    "get_all_volume_usage",
    "volume_snapshot_create",
    "volume_snapshot_delete",
    "block_stats",
    "is_share_mounted",
    "mount_share",
    "umount_share",
    # Consoles, resize and migration.
    "check_instance_shared_storage_local",
    "check_instance_shared_storage_remote",
    "get_instance_disk_info",
    # Images.
    "quiesce",
    "unquiesce",
    # The manager's defaults suffice.
    "default_device_names_for_instance",
    "poll_rebooting_instances",
    "soft_delete",
    "restore",
    # Live migration.
    "check_can_live_migrate_source",
    "cleanup_live_migration_destination_check",
    "live_migration",
    "live_migration_abort",
    "live_migration_force_complete",
    "post_live_migration_at_destination",
    "post_live_migration_at_source",
    "pre_live_migration",
    "rollback_live_migration_at_destination",
    # The driver does not manage the host's hardware.
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
        and getattr(DockerDriver, name) is function
    }
    # Older releases of Nova lack some of the methods.
    assert abstract == {name for name in UNSUPPORTED if hasattr(base, name)}


class FakedDriver(DockerDriver):
    """The driver on fakes of its collaborators, as Nova's test constructs it."""

    def __init__(self, virtapi: Any) -> None:
        super().__init__(virtapi, fakes.FakeHost().collaborators())


class DriverConformance(nova_tests._VirtDriverTestCase, test.TestCase):  # type: ignore[misc]
    """All of Nova's tests; the modules below the driver are fakes."""

    # A function below runs this class, because Nova's tearDown deletes attributes that pytest sets.
    __test__ = False

    def setUp(self) -> None:
        self.driver_module = f"{__name__}.{FakedDriver.__name__}"
        # The driver refuses ephemeral disks, which Nova's test flavor has by default.
        flavor = functools.partial(nova_utils.get_test_flavor, options={"ephemeral_gb": 0})
        patcher = mock.patch.object(nova_utils, "get_test_flavor", flavor)
        patcher.start()
        self.addCleanup(patcher.stop)
        super().setUp()
        # Nova's fixture resets the options, so the driver of Nova's setUp has the default.
        self.flags(state_path=self.useFixture(fixtures.TempDir()).path)
        self.connection = FakedDriver(self.connection.virtapi)
        # Nova 31 replaces Event.wait, without which no thread starts in order.
        self.flags(vif_plugging_timeout=0)
        self.connection.init_host("myhostname")

    def test_migrate_disk_and_power_off(self) -> None:
        # Nova's test takes "dest_host" for this host.
        with mock.patch.object(self.connection, "get_host_ip_addr", return_value="dest_host"):
            super().test_migrate_disk_and_power_off()


NOT_TOLERANT = {
    # Their connections have no volume id, or their device's name is a mock.
    "test_attach_detach_different_power_states",
    "test_attach_detach_volume",
    "test_get_device_name_for_instance",
    "test_swap_volume",
    # These tests need live migration and do not tolerate NotImplementedError.
    "test_live_migration",
    "test_live_migration_force_complete",
    # These tests do not tolerate that such a console is unavailable.
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
