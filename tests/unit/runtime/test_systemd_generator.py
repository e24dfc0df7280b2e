# SPDX-License-Identifier: Apache-2.0
"""The generators of systemd for servers without CAP_SYS_ADMIN and with it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import CHECKOUT

GENERATOR = CHECKOUT / "novadocker" / "runtime" / "systemd-generator"
MOUNT_GENERATOR = GENERATOR.with_name("systemd-mount-generator")
ALL = ("service.d/10-novadocker-service.conf", "PrivateUsers=no")

Files = dict[str, dict[str, str]]
Generate = Callable[..., dict[str, list[str]]]


@pytest.fixture
def generate(tmp_path: Path) -> Generate:
    """Return a function that returns the settings in each drop-in for these unit files."""

    def call(files: Files, version: str = "systemd 257 (257.13-1)") -> dict[str, list[str]]:
        root, target = tmp_path / "root", tmp_path / "generated"
        for folder, units in files.items():
            for name, content in units.items():
                path = root / folder / "systemd/system" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"[Service]\n{content}\n")
        systemctl = tmp_path / "systemctl"
        systemctl.write_text(f"#!/bin/sh\necho '{version}'\necho +PAM\n")
        systemctl.chmod(0o755)
        text = GENERATOR.read_text()
        for folder in ("/etc", "/run", "/usr/local/lib", "/lib", "/usr/lib"):
            assert f" {folder}/systemd/system" in text
            text = text.replace(f" {folder}/systemd/system", f" {root}{folder}/systemd/system")
        done = subprocess.run(
            ["sh", "-u", "-c", text, "generator", target, target, target],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
        return {
            str(path.relative_to(target)): [
                line for line in path.read_text().splitlines() if line and line[0] not in "#["
            ]
            for path in sorted(target.rglob("*.conf"))
        }

    return call


def drop_in(service: str, *settings: str) -> dict[str, list[str]]:
    return {
        ALL[0]: [ALL[1]],
        f"{service}.d/10-novadocker-{service}.conf": list(settings),
    }


NONE = {ALL[0]: [ALL[1]]}
USER = "User=redis"
LOG = "BindReadOnlyPaths=/dev/log:/var/lib/haproxy/dev/log"
NO_BIND = "BindReadOnlyPaths="
NO_CAPSET = "SystemCallFilter=~capset"

TABLE = [
    ({}, NONE),
    ({"usr/lib": {"a.service": "PrivateUsers=yes"}}, NONE),
    # a filter and a user
    ({"usr/lib": {"a.service": f"{USER}\nProtectClock=yes"}}, drop_in("a.service", NO_CAPSET)),
    ({"etc": {"a@.service": f"{USER}\nSystemCallFilter=@x"}}, drop_in("a@.service", NO_CAPSET)),
    (
        {
            "usr/local/lib": {"a.service": USER},
            "run": {"a.service.d/x.conf": "RestrictRealtime=yes"},
        },
        drop_in("a.service", NO_CAPSET),
    ),
    ({"usr/lib": {"a.service": "ProtectClock=yes"}}, NONE),
    ({"usr/lib": {"a.service": f"{USER}\nProtectSystem=strict"}}, NONE),
    ({"usr/lib": {"a.service": f"#{USER}\nProtectClock=yes"}}, NONE),
    ({"usr/lib": {"a.service": USER, "b.service": "ProtectClock=yes"}}, NONE),
    ({"usr/lib": {"a.service": USER, "a.b.service": "ProtectClock=yes"}}, NONE),
    # a file of the tenant hides one of the image
    (
        {
            "etc": {"a.service": "ProtectClock=yes"},
            "usr/lib": {"a.service": f"{USER}\nProtectClock=yes"},
        },
        NONE,
    ),
    # bind mounts
    ({"usr/lib": {"a.service": LOG}}, drop_in("a.service", NO_BIND)),
    (
        {"usr/lib": {"a.service": "BindPaths=-/run/systemd/journal/dev-log /dev/log:/x/log"}},
        drop_in("a.service", NO_BIND),
    ),
    ({"usr/lib": {"a.service": f"{LOG}\nBindPaths=/srv:/var/lib/a"}}, NONE),
    ({"usr/lib": {"a.service": LOG}, "etc": {"a.service.d/b.conf": "BindPaths=/srv:/x"}}, NONE),
    ({"usr/lib": {"a.service": "BindPaths=/dev/log:/x/log /srv:/x"}}, NONE),
    ({"usr/lib": {"a.service": "BindPaths=/dev/logs:/x/log"}}, NONE),
    (
        {"usr/lib": {"a.service": f"{LOG}\n{USER}\nPrivateDevices=yes"}},
        drop_in("a.service", NO_BIND, NO_CAPSET),
    ),
]


@pytest.mark.parametrize(("files", "expected"), TABLE)
def test_drop_ins(generate: Generate, files: Files, expected: dict[str, list[str]]) -> None:
    assert generate(files) == expected


@pytest.mark.parametrize("version", ["systemd 252 (252.39-1)", "systemd 254~rc1 (254~rc1)", ""])
def test_filters_of_older_versions_stay(generate: Generate, version: str) -> None:
    files = {"usr/lib": {"a.service": f"{USER}\nProtectClock=yes"}}
    assert generate(files, version) == NONE


def test_many_services(generate: Generate) -> None:
    units = {f"a{number}.service": f"{USER}\n{LOG}\nProtectClock=1" for number in range(99)}
    assert len(generate({"usr/lib": units})) == 100


def test_mounts_that_no_user_namespace_permits(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("normal", "early", "late")]
    for folder in folders:
        folder.mkdir()
    subprocess.run([MOUNT_GENERATOR, *folders], check=True, timeout=30)
    assert {path: path.readlink() for path in tmp_path.glob("*/*")} == {
        tmp_path / "normal" / f"sys-kernel-{name}.mount": Path("/dev/null")
        for name in ("debug", "tracing")
    }
