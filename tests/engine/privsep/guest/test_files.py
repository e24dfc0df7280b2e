# SPDX-License-Identifier: Apache-2.0
"""Passwords in running containers, with every file that a tenant could plant."""

import os
import threading
from pathlib import Path

import pytest

from novadocker.linux import openat
from novadocker.privsep.guest import files
from tests.engine.guest.test_identity import ACCOUNTS, Boot, Build, Guest, boot, build

__all__ = ["boot", "build"]

AFTER = "root:$6$new:20001:0:99999:7:::\n"


def set_password(guest: Guest, user: str = "root") -> bool:
    return files.set_password(guest.id, guest.pid, user, "$6$new", 20001)


@pytest.fixture
def guest(build: Build, boot: Boot) -> Guest:
    return boot(build(ACCOUNTS))


def test_set_password_keeps_owner_and_mode(guest: Guest) -> None:
    guest.run("chown", "0:42", "/etc/shadow")
    assert set_password(guest)
    assert guest.run("cat", "/etc/shadow") == AFTER
    assert guest.run("stat", "-c", "%a %u %g", "/etc/shadow") == "640 0 42\n"
    assert "nova" not in guest.run("ls", "-a", "/etc")
    guest.client.pause(guest.id)
    assert set_password(guest)
    guest.client.unpause(guest.id)


def test_set_password_without_shadow(guest: Guest) -> None:
    guest.run("rm", "/etc/shadow")
    assert set_password(guest)
    assert guest.run("cat", "/etc/shadow") == AFTER
    assert guest.run("stat", "-c", "%a", "/etc/shadow") == "600\n"


@pytest.mark.parametrize("passwd", ["bin:x:1:1::/:\n", "root::0:0::/root:\n", None])
def test_no_such_account(guest: Guest, passwd: str | None) -> None:
    guest.run("rm", "/etc/passwd")
    if passwd:
        guest.run("sh", "-c", f"printf '{passwd}' >/etc/passwd")
    assert set_password(guest) is False
    assert guest.run("cat", "/etc/shadow") == ACCOUNTS["etc/shadow"].decode()


@pytest.mark.parametrize(
    "script",
    [
        "mv /etc/shadow /x; ln -s /x /etc/shadow",
        "mv /etc/shadow /x; ln -s ../../../../../../x /etc/shadow",
        "mv /etc/shadow /x; ln -s /y /etc/shadow; ln -s x /y",
        "mkdir -p /d/e; mv /etc/shadow /d; ln -s ../d/e /l; ln -s ../../l/../shadow /etc/shadow",
    ],
)
def test_links_are_followed_within_the_container(guest: Guest, script: str) -> None:
    assert guest.run("sh", "-c", script) == ""
    assert set_password(guest)
    assert guest.run("cat", "/etc/shadow") == AFTER


@pytest.mark.parametrize(
    "script",
    [
        "ln -sf /etc/shadow /etc/shadow",
        "rm /etc/shadow; mkfifo /etc/shadow",
        "rm /etc/shadow; mkdir /etc/shadow",
        "rm /etc/shadow; mknod /etc/shadow c 1 7",
        "ln -sf / /etc/shadow",
        "ln -sf /proc/1/cwd/.. /etc/shadow",
        "rm -r /etc/shadow; ln -s /proc/self/root/etc/shadow /etc/shadow",
        "rm -r /etc/shadow; ln -s /no/such /etc/shadow",
        "dd if=/dev/zero of=/etc/shadow bs=1M count=2",
        "mv /etc/passwd /x; mkfifo /etc/passwd",
    ],
)
def test_traps(guest: Guest, script: str) -> None:
    host = Path("/etc/shadow").read_bytes()
    guest.run("sh", "-c", script)
    with pytest.raises(OSError, match=r"regular file|bytes|links|No such|cross-device"):
        set_password(guest)
    assert Path("/etc/shadow").read_bytes() == host


def test_a_folder_that_is_swapped_all_the_time_never_leads_out(guest: Guest) -> None:
    """If the host resolved the tenant's links, the tenant would soon win the race."""
    outside = Path(f"/proc/{guest.pid}/root")
    folder = f"/novadocker-{guest.uuid}"
    os.mkdir(folder)
    (Path(folder) / "shadow").write_text("the host's")
    (outside / folder.strip("/")).mkdir()
    (outside / folder.strip("/") / "shadow").write_text("the container's")
    stop = threading.Event()

    def swap() -> None:
        link, path = outside / "link", outside / "d"
        while not stop.is_set():
            link.unlink(missing_ok=True)
            link.symlink_to(f"../../../../..{folder}")
            os.rename(link, path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        with openat.open_root(guest.id, guest.pid) as root:
            for number in range(300):
                try:
                    assert openat.read_file(root, "/d/shadow") != b"the host's"
                    openat.replace_file(root, "/d/shadow", b"%d" % number)
                except OSError:
                    continue
        assert (Path(folder) / "shadow").read_text() == "the host's"
        assert os.listdir(folder) == ["shadow"]
    finally:
        stop.set()
        swapper.join()
        (Path(folder) / "shadow").unlink()
        os.rmdir(folder)


def test_a_process_of_another(guest: Guest) -> None:
    with pytest.raises(ProcessLookupError):
        files.set_password(guest.id, os.getpid(), "root", "$6$new", 1)
    with pytest.raises(ProcessLookupError):
        files.set_password("0" * 64, guest.pid, "root", "$6$new", 1)
