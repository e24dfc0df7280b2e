# SPDX-License-Identifier: Apache-2.0
"""Prometheus, Alertmanager and their targets, with accelerated samples of ``etc``.

Every wait and look-back of an alarm is a thirtieth of its usual duration.
"""

import re
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from devcloud.clients import connect
from devcloud.program import Program
from devcloud.settings import API_ADDRESS, CHECKOUT, Host, Settings
from devcloud.steps import run_command

PROMETHEUS_PORT = 9090
ALERTMANAGER_PORT = 9093
EXPORTER_PORT = 9419
ACT_PORT = 9420
CONTACTS_PORT = 9421
MAIL_PORT = 2525

CONTACT = "demo@example.org"
"""The contact of the project ``demo``."""

SAMPLES = CHECKOUT / "etc"
STEP = "2s"
QUICKER = 30
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_FOR = re.compile(r"((?:keep_firing_)?for: |\[)([0-9]+)([smh])")
_USER = "prometheus"


def folder(settings: Settings) -> Path:
    """Return the directory of the configuration."""
    return settings.etc / "watch"


def mail_folder(settings: Settings) -> Path:
    """Return the directory of the mails to owners and operators, one file per mail."""
    return settings.data / "mail"


def url(port: int, path: str = "/") -> str:
    """Return a URL of Prometheus or Alertmanager."""
    return f"http://{API_ADDRESS}:{port}{path}"


def exporter(settings: Settings, host: Host) -> Program:
    """Return the exporter of one host."""
    etc, run = folder(settings), settings.host_run(host)
    return Program(
        f"exporter-{host.name}",
        (
            f"{settings.bin}/novadocker-exporter",
            *("--address", host.address, "--port", str(EXPORTER_PORT)),
            *("--certificate", str(certificate(settings)), "--key", f"{etc}/exporter.key"),
            *("--password-file", f"{etc}/exporter.password"),
            *("--data-root", f"{settings.host_data(host)}/docker"),
            *("--engine-socket", str(settings.engine_socket(host))),
            *("--containerd-socket", f"{run}/docker/containerd/containerd.sock"),
            *("--ovs-folder", f"{run}/ovs", "--ovs-control-socket", f"{run}/ovs/vswitchd.ctl"),
            *("--ovn-folder", f"{run}/ovs"),
            *("--lxcfs-folder", str(settings.lxcfs_folder(host))),
            *("--state-path", f"{settings.host_data(host)}/nova"),
            *("--kernel-log-folder", f"{settings.host_data(host)}/kernel"),
        ),
        stage="watch",
    )


def programs(settings: Settings) -> Iterable[Program]:
    """Return the programs that the cloud has once, not per host."""
    etc = folder(settings)
    yield Program(
        "prometheus",
        (
            "/usr/bin/prometheus",
            f"--config.file={etc}/prometheus.yml",
            f"--storage.tsdb.path={settings.data}/prometheus",
            "--storage.tsdb.retention.time=2d",
            # An alarm that fires while Alertmanager reloads is lost, so Prometheus resends it soon.
            f"--rules.alert.resend-delay={STEP}",
            f"--web.listen-address={API_ADDRESS}:{PROMETHEUS_PORT}",
            "--web.enable-lifecycle",
        ),
        (etc / "prometheus.yml", etc / "rules.yml"),
        stop_wait=10,
        stage="watch",
    )
    yield Program(
        "alertmanager",
        (
            "/usr/bin/prometheus-alertmanager",
            f"--config.file={etc}/alertmanager.yml",
            f"--storage.path={settings.data}/alertmanager",
            f"--web.listen-address={API_ADDRESS}:{ALERTMANAGER_PORT}",
            "--cluster.listen-address=",
        ),
        (etc / "alertmanager.yml",),
        stage="watch",
    )
    cloud = (
        ("OS_CLIENT_CONFIG_FILE", f"{settings.folder}/clouds.yaml"),
        ("OS_CLOUD", "devcloud-admin"),
        ("no_proxy", API_ADDRESS),
    )
    password = ("--password-file", f"{etc}/exporter.password")
    yield Program(
        "act",
        (f"{settings.bin}/novadocker-act", "--policy", f"{etc}/actions.yml", *password),
        (etc / "actions.yml",),
        cloud,
        stage="watch",
    )
    yield Program(
        "contacts",
        (f"{settings.bin}/novadocker-contacts", *password),
        environment=cloud,
        stage="watch",
    )
    yield Program(
        "mail",
        (sys.executable, "-m", "devcloud.mailbox", str(MAIL_PORT), str(mail_folder(settings))),
        environment=(("PYTHONPATH", str(CHECKOUT)),),
        stage="watch",
    )


def certificate(settings: Settings) -> Path:
    """Return the path of all exporters' certificate; its name depends on the number of hosts."""
    return folder(settings) / f"exporter-{len(settings.hosts)}.pem"


def prepare(settings: Settings) -> None:
    """Write the programs' configuration, password and certificate.

    :raises StepFailed: openssl failed to create the certificate.
    """
    etc = folder(settings)
    etc.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = etc / "password"
    if not password.exists():
        _write(password, secrets.token_hex(12))
    _write(etc / "exporter.password", f"{_USER}:{password.read_text()}\n")
    if not certificate(settings).exists():
        names = ",".join(f"IP:{host.address}" for host in settings.hosts)
        run_command(
            [
                *("openssl", "req", "-x509", "-newkey", "ec"),
                *("-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"),
                *("-subj", "/CN=novadocker-exporter", "-addext", f"subjectAltName={names}"),
                *("-keyout", etc / "exporter.key", "-out", certificate(settings)),
            ],
            log=settings.log / "openssl.log",
            advice="python3 -m devcloud install",
        )
    rules = (SAMPLES / "prometheus" / "novadocker.rules.yml").read_text()
    _write(etc / "rules.yml", quicker(rules))
    if not (etc / "overrides.yml").exists():
        _write(etc / "overrides.yml", yaml.safe_dump({"groups": []}))
    _write(etc / "prometheus.yml", yaml.safe_dump(prometheus(settings)))
    sample = yaml.safe_load((SAMPLES / "prometheus" / "alertmanager.yml").read_text())
    _write(etc / "alertmanager.yml", yaml.safe_dump(alertmanager(settings, sample)))
    policy = yaml.safe_load((SAMPLES / "novadocker" / "actions.yml").read_text())
    policy["enabled"] = policy["rules"][0]["undo"] = True
    _write(etc / "actions.yml", yaml.safe_dump(policy))


def name_contact(settings: Settings) -> None:
    """Set the contact of the tenant's project."""
    identity = connect(settings, "admin").identity
    project = identity.find_project("demo", ignore_missing=False)
    if project.get("contact") != CONTACT:
        identity.update_project(project, contact=CONTACT)


def quicker(rules: str) -> str:
    """Return rules whose waits and look-backs last a thirtieth of their usual duration."""

    def scaled(match: re.Match[str]) -> str:
        seconds = int(match[2]) * _SECONDS[match[3]]
        return f"{match[1]}{seconds // QUICKER}s"

    return _FOR.sub(scaled, rules)


def prometheus(settings: Settings) -> dict[str, Any]:
    """Return the configuration of Prometheus."""
    etc = folder(settings)
    password = {"username": _USER, "password_file": f"{etc}/password"}
    return {
        "global": {"scrape_interval": STEP, "scrape_timeout": STEP, "evaluation_interval": STEP},
        "rule_files": [f"{etc}/rules.yml", f"{etc}/overrides.yml"],
        "alerting": {
            "alertmanagers": [
                {"static_configs": [{"targets": [f"{API_ADDRESS}:{ALERTMANAGER_PORT}"]}]}
            ]
        },
        "scrape_configs": [
            {
                "job_name": "novadocker",
                "scheme": "https",
                "basic_auth": password,
                "tls_config": {"ca_file": str(certificate(settings))},
                "static_configs": [
                    {
                        "targets": [f"{host.address}:{EXPORTER_PORT}"],
                        "labels": {"instance": host.name},
                    }
                    for host in settings.hosts
                ],
            },
            {
                "job_name": "contacts",
                "basic_auth": password,
                "static_configs": [{"targets": [f"127.0.0.1:{CONTACTS_PORT}"]}],
            },
        ],
    }


def alertmanager(settings: Settings, sample: dict[str, Any]) -> dict[str, Any]:
    """Return Alertmanager's sample configuration, accelerated and with the local mail server."""
    act = {
        "url": f"http://127.0.0.1:{ACT_PORT}/",
        "http_config": {
            "basic_auth": {"username": _USER, "password_file": f"{folder(settings)}/password"}
        },
    }
    route = sample["route"]
    to_act = {"matchers": ['severity="page"'], "receiver": "act", "continue": True}
    quick = {"group_wait": "1s", "group_interval": STEP}
    return {
        **sample,
        "global": {
            **sample["global"],
            "smtp_smarthost": f"127.0.0.1:{MAIL_PORT}",
            "smtp_require_tls": False,
        },
        "route": {**route, **quick, "routes": [to_act, *route["routes"]]},
        "receivers": [*sample["receivers"], {"name": "act", "webhook_configs": [act]}],
    }


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
