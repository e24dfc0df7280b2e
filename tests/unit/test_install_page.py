# SPDX-License-Identifier: Apache-2.0
"""The commands, paths and options of ``docs/install.rst`` exist.

``tests/install/test_page.py`` runs the commands on a Debian of its own.
"""

import configparser
import re
import shlex
from pathlib import Path

import pytest
from nova import conf
from vif_plug_ovs import privsep as os_vif  # noqa: F401 - registers its section

import novadocker.conf
from novadocker import privsep  # noqa: F401 - registers the sections of the contexts
from novadocker.cmd import engine_config
from tests import CHECKOUT, page_commands

PAGE = CHECKOUT / "docs/install.rst"
SAMPLES = "/usr/local/etc/novadocker/"

# The programs of the page that are not this package's, with their Debian packages.
PROGRAMS = {
    "apt": "apt",
    "apt-get": "apt",
    "cp": "coreutils",
    "docker": "docker.io",
    "gpasswd": "passwd",
    "make": "make",
    "nova-manage": "nova-common",
    "openstack": "python3-openstackclient",
    "ovs-vsctl": "openvswitch-switch",
    "pip": "python3-pip",
    "rm": "coreutils",
    "sudo": "sudo",
    "sysctl": "procps",
    "systemctl": "systemd",
    "usermod": "passwd",
}


def setup() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(CHECKOUT / "setup.cfg")
    return found


def own_programs() -> set[str]:
    return set(re.findall(r"^(\S+) =", setup()["entry_points"]["console_scripts"], re.MULTILINE))


@pytest.fixture(scope="module")
def commands() -> list[page_commands.Command]:
    return page_commands.commands(PAGE)


def test_the_engine_reads_live_restore_before_it_restarts(
    commands: list[page_commands.Command],
) -> None:
    """Otherwise the restart stops all containers."""
    texts = [command.text for command in commands]
    restart = texts.index("systemctl restart docker")
    assert texts[restart - 1] == "systemctl reload docker"


def test_every_program_is_known(commands: list[page_commands.Command]) -> None:
    assert len(commands) > 30
    unknown = {
        command.text
        for command in commands
        if Path(command.text.split()[0]).name not in PROGRAMS.keys() | own_programs()
    }
    assert unknown == set()


def test_own_commands_have_options_that_exist(commands: list[page_commands.Command]) -> None:
    parsed = 0
    for command in commands:
        words = shlex.split(command.text)
        if "novadocker-engine-config" in words[0]:
            engine_config._parser().parse_args(words[1:])
            parsed += 1
        if "novadocker-status" in command.text:
            assert command.text == "sudo -u nova novadocker-status upgrade check"
            parsed += 1
    assert parsed >= 3


def test_every_sample_exists(commands: list[page_commands.Command]) -> None:
    """A path of the installation has the sample of the checkout's ``etc``."""
    installed = {
        word.removeprefix(SAMPLES)
        for command in commands
        for word in command.text.split()
        if word.startswith(SAMPLES)
    }
    assert len(installed) >= 3
    named = {
        name.rstrip("/") for name in re.findall(r"``etc/([\w./-]+)``", PAGE.read_text()) if name
    } - {"novadocker", "..."}
    assert {name for name in installed | named if not (CHECKOUT / "etc" / name).exists()} == set()


def test_every_configuration_file_parses_and_every_option_exists() -> None:
    unknown = []
    read = 0
    for title, block in page_commands.blocks(PAGE, "ini"):
        parser = configparser.ConfigParser(interpolation=None, default_section="none")
        parser.read_string(block)
        for section in parser.sections():
            # The agent of Neutron has this one, and Neutron is not installed with every Nova.
            if section == "securitygroup":
                continue
            options = conf.CONF if section == "DEFAULT" else conf.CONF[section]
            read += 1
            unknown += [(title, section, name) for name in parser[section] if name not in options]
    assert unknown == []
    assert read > 8
    assert novadocker.conf.CONF is conf.CONF


def test_the_page_names_every_privileged_context() -> None:
    text = PAGE.read_text()
    for name in ("network", "interior", "storage", "view", "transfer"):
        assert f"``novadocker.privsep.{name}_pctxt``" in text
        assert f"[novadocker_{name}]" in text


def test_no_public_package_index_is_named() -> None:
    """The name is free for anybody there, so pip always gets a path."""
    pages = [*(CHECKOUT / "docs").glob("*.rst"), CHECKOUT / "README.rst"]
    for page in pages:
        for line in page.read_text().splitlines():
            if re.search(r"\bpip3? install\b", line):
                assert not re.search(r"install (?:-\S+ )*'?novadocker\b", line), f"{page}: {line}"
