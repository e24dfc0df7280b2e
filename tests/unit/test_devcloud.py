# SPDX-License-Identifier: Apache-2.0
"""The devcloud's settings, configuration files, mailbox and compute services."""

import shutil
import smtplib
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from unittest import mock

import pytest
import yaml

from devcloud import loop_devices, mailbox, seed, services, volumes, watch
from devcloud.programs import all_programs
from devcloud.readiness import AGENTS
from devcloud.settings import NETWORKS, dashboard_file, load_settings, volumes_file, watch_file
from tests import CHECKOUT

SAMPLES = CHECKOUT / "etc" / "prometheus"


@pytest.fixture
def state_folder() -> Iterator[Path]:
    """A directory with a short path, because ``tmp_path`` of a pytest-xdist worker is too long."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest.mark.parametrize(
    ("wanted", "had", "has"),
    [("1", False, True), ("0", True, False), ("", True, True), ("", False, False)],
)
def test_the_dashboard_stays_as_it_is_unless_told(
    state_folder: Path, wanted: str, had: bool, has: bool
):
    noted = dashboard_file(state_folder)
    noted.parent.mkdir()
    if had:
        noted.touch()
    settings = load_settings({"DEVCLOUD_DIR": str(state_folder), "DEVCLOUD_HORIZON": wanted})
    assert settings.dashboard is has


def test_only_a_cloud_with_a_dashboard_runs_horizon(state_folder: Path):
    for wanted, expected in (("1", True), ("0", False)):
        settings = load_settings({"DEVCLOUD_DIR": str(state_folder), "DEVCLOUD_HORIZON": wanted})
        names = [program.name for program in all_programs(settings)]
        assert ("horizon" in names) is expected


def test_prometheus_is_there_when_wanted(state_folder: Path):
    for wanted, expected in (("1", True), ("0", False)):
        settings = load_settings(
            {"DEVCLOUD_DIR": str(state_folder), "DEVCLOUD_HOSTS": "2", "DEVCLOUD_WATCH": wanted}
        )
        names = {program.name for program in all_programs(settings)}
        assert ({"prometheus", "exporter-host1", "exporter-host2"} <= names) is expected
    watch_file(state_folder).parent.mkdir()
    watch_file(state_folder).touch()
    assert load_settings({"DEVCLOUD_DIR": str(state_folder)}).watch


def test_cinder_is_there_when_wanted(state_folder: Path):
    for wanted, expected in (("1", True), ("0", False)):
        settings = load_settings({"DEVCLOUD_DIR": str(state_folder), "DEVCLOUD_VOLUMES": wanted})
        names = {program.name for program in all_programs(settings)}
        assert ({"cinder-api", "cinder-scheduler", "cinder-volume"} <= names) is expected
        assert bool({"cinder-api", "cinder-scheduler", "cinder-volume"} & names) is expected
        # The reports, the accounts and the volume types are those of the programs.
        assert bool(volumes.REPORTS.keys() <= names) is expected
        assert ("multiattach" in seed.seed_state(settings).split()) is expected
    volumes_file(state_folder).parent.mkdir()
    volumes_file(state_folder).touch()
    assert load_settings({"DEVCLOUD_DIR": str(state_folder)}).volumes


def test_loop_devices_of_a_cloud_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {
        "loop0": "/cloud/data/cinder/files/volume-1",
        "loop1": "/cloud/data/cinder-other/files/volume-1",
        "loop12": "/cloud/data/cinder/files/volume-12 (deleted)",
    }
    for device, file in files.items():
        (tmp_path / device / "loop").mkdir(parents=True)
        (tmp_path / device / "loop" / "backing_file").write_text(f"{file}\n")
    (tmp_path / "loop3").mkdir()
    monkeypatch.setattr(loop_devices, "BLOCK_DEVICES", tmp_path)
    of_the_cloud = loop_devices.devices_of(Path("/cloud/data/cinder"))
    assert sorted(of_the_cloud) == [Path("/dev/loop0"), Path("/dev/loop12")]
    of_a_volume = loop_devices.devices_of(Path("/cloud/data/cinder/files/volume-1"))
    assert of_a_volume == [Path("/dev/loop0")]


def test_quick_rules_are_rules(tmp_path: Path):
    quick = watch.quicker((SAMPLES / "novadocker.rules.yml").read_text())
    assert "for: 30m" not in quick
    assert "[10m]" not in quick
    (tmp_path / "rules.yml").write_text(quick)
    check(["promtool", "check", "rules", tmp_path / "rules.yml"])


def test_alertmanager_takes_the_quick_sample(tmp_path: Path, state_folder: Path):
    settings = load_settings({"DEVCLOUD_DIR": str(state_folder)})
    sample = yaml.safe_load((SAMPLES / "alertmanager.yml").read_text())
    (tmp_path / "config.yml").write_text(yaml.safe_dump(watch.alertmanager(settings, sample)))
    check(["amtool", "check-config", tmp_path / "config.yml"])


def test_hosts_have_their_states_back_after_a_block(state_folder: Path):
    settings = load_settings({"DEVCLOUD_DIR": str(state_folder), "DEVCLOUD_HOSTS": "3"})
    states = {"host1": "enabled", "host2": "disabled", "host3": "disabled", "fake1": "enabled"}

    def listed(binary: str) -> list[mock.Mock]:
        return [mock.Mock(host=host, status=status) for host, status in states.items()]

    admin = mock.Mock()
    admin.compute.services = listed
    admin.compute.enable_service = lambda service: states.update({service.host: "enabled"})
    admin.compute.disable_service = lambda service, **_: states.update({service.host: "disabled"})
    before = dict(states)
    with services.open_hosts(admin, settings, settings.hosts[1:2]):
        assert states == before | {"host1": "disabled", "host2": "enabled"}
    assert states == before


def check(command: list[str | Path]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_mailbox_keeps_a_mail(tmp_path: Path):
    with mailbox.Mailbox(0, tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mail = EmailMessage()
        mail["To"], mail["Subject"] = "demo@example.org", "Alarm"
        mail.set_content("words\n.\nmore")
        with smtplib.SMTP("127.0.0.1", server.server_address[1], timeout=30) as client:
            client.send_message(mail, "novadocker@example.org")
        server.shutdown()
    (kept,) = tmp_path.glob("*.eml")
    text = kept.read_text()
    assert "X-Envelope-To: <demo@example.org>" in text
    assert "words\n.\nmore" in text


@pytest.mark.parametrize("network", NETWORKS)
def test_the_agent_of_a_network_is_a_program_of_each_host(state_folder: Path, network: str) -> None:
    settings = load_settings(
        {"DEVCLOUD_DIR": str(state_folder), "DEVCLOUD_HOSTS": "2", "DEVCLOUD_NETWORK": network}
    )
    agents = [settings.network_agent(host) for host in settings.hosts]
    assert set(agents) <= {program.name for program in all_programs(settings)}
    # The tests know the agent's binary by its place.
    assert next(iter(AGENTS[network].values())) == agents[0].removesuffix("-host1")
