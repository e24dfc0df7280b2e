# SPDX-License-Identifier: Apache-2.0
"""A tenant's day in the dashboard, in a real browser."""

import re
from collections.abc import Callable, Iterator

import pytest
from openstack.connection import Connection
from playwright.sync_api import expect
from tenant import SECONDS, Dashboard

from devcloud import steps
from devcloud.images import archive_path
from devcloud.settings import Settings

IMAGE, BROKEN_IMAGE, SERVER, BROKEN, SNAPSHOT = (
    f"horizon-{what}" for what in ("image", "broken-image", "server", "broken", "snapshot")
)


@pytest.fixture(autouse=True)
def clean(demo: Connection) -> Iterator[None]:
    """Delete the test's servers and images, and an earlier test's leftovers."""

    def remove() -> None:
        for name in (SERVER, BROKEN):
            demo.delete_server(name, wait=True)
        for image in demo.image.images():
            if image.name in (IMAGE, BROKEN_IMAGE, SNAPSHOT):
                demo.image.delete_image(image)

    remove()
    yield
    remove()


def test_the_fault_of_a_failed_boot_in_words(
    dashboard: Dashboard, demo: Connection, cloud: Settings
) -> None:
    command = "/bin/no-such-command"
    dashboard.upload(BROKEN_IMAGE, archive_path(cloud, "busybox"), "os_command_line", command)
    dashboard.launch(BROKEN, BROKEN_IMAGE, "d1.tiny", "private")
    dashboard.wait_for_status(BROKEN, "Error")
    dashboard.open_server(demo.compute.find_server(BROKEN).id, "overview")
    expect(dashboard.page.locator("#instance_details__overview")).to_contain_text(command)
    dashboard.picture("fault")


def test_a_day(dashboard: Dashboard, demo: Connection, cloud: Settings) -> None:
    dashboard.upload(IMAGE, archive_path(cloud, "busybox"), "os_console", "shell")
    image = demo.image.find_image(IMAGE)
    assert (image.container_format, image.disk_format) == ("docker", "raw")
    assert image.properties["os_console"] == "shell"

    dashboard.launch(SERVER, IMAGE, "d1.tiny", "private")
    dashboard.wait_for_status(SERVER, "Active")
    server = demo.compute.find_server(SERVER).id

    dashboard.open_server(server, "console")
    screen = dashboard.console()
    screen.locator(".terminal").click()
    dashboard.page.keyboard.type("echo $((6*7)) is what $(hostname) says\n")
    expect(screen.locator("body")).to_contain_text(re.compile(rf"42\sis\swhat\s{SERVER}\ssays"))
    dashboard.picture("console")

    dashboard.resize(SERVER, "d1.small")
    assert demo.compute.get_server(server).flavor.ram == 512
    # A live resize does not restart the first process.
    assert starts(demo, server) == 1

    dashboard.snapshot(SERVER, SNAPSHOT)

    dashboard.open("instances")
    dashboard.act(SERVER, "soft_reboot")
    dashboard.confirm()
    wait_until(lambda: starts(demo, server) == 2)

    dashboard.attach(SERVER, "private-vlan")
    wait_until(lambda: "private-vlan" in demo.compute.get_server(server).addresses)
    dashboard.open("instances")
    expect(dashboard.row(SERVER)).to_contain_text("private-vlan")
    # because the list has one row, the rest of the window is empty
    dashboard.picture("servers", height=450)

    dashboard.act(SERVER, "delete")
    dashboard.confirm()
    expect(dashboard.row(SERVER)).to_have_count(0)


def test_extra_specs_have_names_and_help(log_in: Callable[[str], Dashboard]) -> None:
    dashboard = log_in("admin")
    dashboard.open_flavor("d1.medium")
    text = dashboard.describe("Docker Driver Options", "Processes")
    expect(text).to_contain_text("Largest number of processes and threads")
    expect(text).to_contain_text("docker:pids_limit")
    dashboard.picture("flavor-metadata")


def starts(demo: Connection, server: str) -> int:
    """Return the number of starts of the server's first process."""
    output = demo.compute.get_server_console_output(server)["output"]
    return sum(line.strip() == "ready" for line in output.splitlines())


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the cloud has done what the page requested."""
    steps.wait_until(condition, what="the cloud's reaction", advice="", timeout=SECONDS, interval=1)
