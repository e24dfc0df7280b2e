# SPDX-License-Identifier: Apache-2.0
"""A tenant's actions in the dashboard, named as on its pages."""

from pathlib import Path

from playwright.sync_api import FrameLocator, Locator, Page, expect

SECONDS = 120
"""Timeout of the operations that a page waits for."""


TITLES = {"os_console": "Serial console", "os_command_line": "Command"}
"""The titles of image properties in the metadata definitions."""


class Dashboard:
    """A browser's page, logged in.

    :param url: Horizon's URL.
    :param pictures: directory for screenshots; None takes none.
    """

    def __init__(self, page: Page, url: str, pictures: Path | None) -> None:
        self.page = page
        self._url = url
        self._pictures = pictures
        page.set_default_timeout(SECONDS * 1000)
        expect.set_options(timeout=SECONDS * 1000)

    def log_in(self, user: str, password: str) -> None:
        """Log in on the first page."""
        self.page.goto(self._url)
        self.page.fill("#id_username", user)
        self.page.fill("#id_password", password)
        self.page.click("#loginBtn")
        self.page.wait_for_url("**/project/**")

    def picture(self, name: str, height: int | None = None) -> None:
        """Write a screenshot for the documentation.

        :param height: the height in pixels from the top of the window; None for the whole window.
        """
        if self._pictures is not None:
            size = self.page.viewport_size
            clip = {"x": 0, "y": 0, "width": size["width"], "height": height} if height else None
            self.page.screenshot(path=self._pictures / f"{name}.png", clip=clip)

    def open(self, path: str) -> None:
        """Open a page of the project."""
        self.page.goto(f"{self._url}project/{path}/")

    def open_flavor(self, flavor: str) -> None:
        """Open the form of a flavor's extra specs, as an administrator."""
        self.page.goto(f"{self._url}admin/flavors/")
        row = self.page.locator("tr").filter(has=self.page.get_by_text(flavor, exact=True))
        row.get_by_text("Update Metadata").click()

    def row(self, name: str) -> Locator:
        """Return the row of a table whose link has this name."""
        link = self.page.get_by_role("link", name=name, exact=True)
        return self.page.locator("tr").filter(has=link)

    def upload(self, name: str, archive: Path, key: str, value: str) -> None:
        """Create an image in the format Docker with one property; wait until it is active."""
        self.open("images")
        self.page.get_by_role("button", name="Create Image").click()
        modal = self.page.locator(".modal-content")
        modal.locator("#imageForm-name").fill(name)
        modal.locator("input[name=image_file]").set_input_files(archive)
        modal.locator("#imageForm-format").select_option(label="Docker")
        self.picture("image-upload")
        modal.get_by_role("link", name="Metadata").click()
        self.describe("Docker Driver Image Options", TITLES[key])
        field = modal.locator("metadata-tree-item").filter(has_text=key).locator("[name=property]")
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(label=value)
        else:
            field.fill(value)
        self.picture("image-metadata")
        modal.locator(".modal-footer").get_by_role("button", name="Create Image").click()
        expect(self.row(name)).to_contain_text("Active")

    def describe(self, group: str, title: str) -> Locator:
        """Add the entry with this title from a group of metadata definitions; return its help."""
        entries = self.page.locator(".modal-content metadata-tree li")
        exactly = self.page.get_by_text(group, exact=True)
        entries.filter(has=exactly).click()
        entry = entries.filter(has=self.page.locator(".leaf").get_by_text(title, exact=True))
        entry.locator("a").click()
        return self.page.locator(".modal-content metadata-tree .well")

    def choose(self, step: str, name: str) -> None:
        """Select an entry in a step of the form that launches a server."""
        modal = self.page.locator(".modal-content")
        modal.locator(".wizard-nav, .nav").get_by_role("link", name=step).first.click()
        entry = modal.locator("transfer-table:visible tr:visible").filter(
            has=self.page.get_by_text(name, exact=True)
        )
        entry.locator("action-list button:visible").first.click()

    def launch(self, name: str, image: str, flavor: str, network: str) -> None:
        """Launch a server, without waiting until it is active."""
        self.open("instances")
        self.page.locator("#instances__action_launch-ng").click()
        modal = self.page.locator(".modal-content")
        modal.locator("#name").fill(name)
        self.choose("Source", image)
        self.choose("Flavor", flavor)
        self.choose("Networks", network)
        self.picture("launch")
        modal.get_by_role("button", name="Launch Instance").click()
        expect(self.row(name)).to_be_visible()

    def wait_for_status(self, name: str, status: str) -> None:
        """Wait until the list of servers shows a status; the page refreshes itself."""
        expect(self.row(name)).to_contain_text(status)

    def act(self, name: str, action: str) -> None:
        """Select an action in the menu of a server's row."""
        row = self.row(name)
        row.locator(".dropdown-toggle").click()
        row.locator(f"[id$='__action_{action}']").click()

    def confirm(self) -> None:
        """Confirm an action in its dialog and wait for the next page."""
        modal = self.page.locator(".modal-content")
        with self.page.expect_navigation():
            modal.locator(".modal-footer .btn-primary, .modal-footer .btn-danger").click()

    def submit(self) -> None:
        """Submit the form of an action and wait for the next page."""
        with self.page.expect_navigation():
            self.page.locator(".modal-content .modal-footer [type=submit]").click()

    def pick(self, field: str, option: str) -> None:
        """Select an entry of a form's list; Horizon draws its own list over the browser's."""
        themed = self.page.locator(f".modal-content .themable-select:has(select[name={field}])")
        themed.locator(".dropdown-toggle").click()
        themed.locator(".dropdown-menu a").filter(has_text=option).first.click()

    def resize(self, name: str, flavor: str) -> None:
        """Resize a server and confirm the resize."""
        self.open("instances")
        self.act(name, "resize")
        self.pick("flavor", flavor)
        self.picture("resize")
        self.submit()
        confirm = self.row(name).locator("[id$='__action_confirm']")
        confirm.click()
        self.wait_for_status(name, "Active")
        expect(self.row(name)).to_contain_text(flavor)

    def snapshot(self, name: str, image: str) -> None:
        """Create a snapshot and wait until the image is active."""
        self.open("instances")
        self.row(name).locator("[id$='__action_snapshot']").click()
        modal = self.page.locator(".modal-content")
        modal.locator("input[name=name]").fill(image)
        modal.locator(".modal-footer .btn-primary").click()
        self.page.wait_for_url("**/images**")
        expect(self.row(image)).to_contain_text("Active")

    def attach(self, name: str, network: str) -> None:
        """Attach an interface on a network."""
        self.open("instances")
        self.act(name, "attach_interface")
        self.pick("network", network)
        self.picture("attach")
        self.submit()

    def open_server(self, server: str, tab: str) -> None:
        """Open a tab of a server's page.

        :param server: the server's id.
        :param tab: ``overview``, ``interfaces``, ``log`` or ``console``.
        """
        self.page.goto(f"{self._url}project/instances/{server}/")
        self.page.locator(f"a[href='?tab=instance_details__{tab}']").click()
        expect(self.page.locator(f"#instance_details__{tab}")).to_be_visible()

    def console(self) -> FrameLocator:
        """Wait for a prompt in the terminal of a console tab; return the terminal's frame."""
        screen = self.page.frame_locator("#console_embed")
        expect(screen.locator(".terminal")).to_contain_text("#")
        return screen
