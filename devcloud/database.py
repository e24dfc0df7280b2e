# SPDX-License-Identifier: Apache-2.0
"""MariaDB's data directory, the databases and their tables."""

import base64
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from devcloud.network import inside
from devcloud.settings import API_ADDRESS, NAMESPACE, REGION, Settings, load_secrets
from devcloud.steps import run_command, run_in_parallel, say
from devcloud.supervise import service_environment

METADEFS = Path(__file__).parents[1] / "etc" / "glance" / "metadefs"

DATABASES = ("keystone", "glance", "placement", "nova_api", "nova", "nova_cell0", "neutron")

ADVICE = "python3 -m devcloud clean, then up again"


def tables_made(settings: Settings) -> Path:
    """Return the path of the file that exists when all tables are complete."""
    return settings.data / "tables-made"


def has_data_folder(settings: Settings) -> bool:
    """Return True if MariaDB's system tables exist."""
    return (settings.data / "mariadb" / ".devcloud-made").exists()


def make_data_folder(settings: Settings) -> None:
    """Create MariaDB's system tables, in place of half-made ones."""
    folder = settings.data / "mariadb"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run_command(
        [
            *("mariadb-install-db", "--user=root", f"--datadir={folder}", "--skip-test-db"),
            *("--auth-root-authentication-method=normal", "--skip-name-resolve"),
        ],
        log=settings.log / "mariadb-install.log",
        advice=ADVICE,
    )
    (folder / ".devcloud-made").touch()


def answers(settings: Settings) -> bool:
    """Return True if MariaDB accepts connections."""
    ping = subprocess.run(
        ["mariadb-admin", f"--socket={settings.run}/mariadb.sock", "ping"],
        capture_output=True,
        check=False,
    )
    return ping.returncode == 0


def create_databases(settings: Settings, names: Sequence[str] = DATABASES) -> None:
    """Create the services' database account and empty databases, in place of half-made ones."""
    password = load_secrets(settings)["database"]
    statements = [f"create or replace database {name} character set utf8mb4;" for name in names]
    statements += [
        f"create user if not exists openstack@'%' identified by '{password}';",
        "grant all on *.* to openstack@'%';",
    ]
    run_command(
        ["mariadb", f"--socket={settings.run}/mariadb.sock"],
        log=settings.log / "mariadb-databases.log",
        advice=ADVICE,
        stdin="\n".join(statements),
    )


def manage(settings: Settings, name: str, *command: str) -> None:
    """Run an administration command of one of the services inside the cloud."""
    begin = time.monotonic()
    run_command(
        inside(NAMESPACE, [settings.bin / command[0], *command[1:]]),
        log=settings.log / f"manage-{name.replace(' ', '-')}.log",
        advice=ADVICE,
        environment=service_environment(settings),
    )
    say(f"  {name} ({time.monotonic() - begin:.1f} s)")


def make_keys(repository: Path) -> None:
    """Create the missing keys of a keystone key repository: 0 is the next key, 1 the present one.

    ``keystone-manage fernet_setup`` does the same in eight seconds; see keystone's administration
    guide, "Fernet - Frequently Asked Questions".
    """
    repository.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in ("0", "1"):
        key = repository / number
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(base64.urlsafe_b64encode(secrets.token_bytes(32)))


def make_tables(settings: Settings) -> None:
    """Create all tables and the first account, in three concurrent chains."""
    etc = settings.etc
    password = load_secrets(settings)

    def identity_chain() -> None:
        keystone = ("keystone-manage", "--config-file", f"{etc}/keystone/keystone.conf")
        for repository in ("fernet-keys", "credential-keys"):
            make_keys(settings.data / "keystone" / repository)
        manage(settings, "keystone tables", *keystone, "db_sync")
        url = f"http://{API_ADDRESS}:5000/v3"
        manage(
            settings,
            "keystone bootstrap",
            *(*keystone, "bootstrap", "--bootstrap-password", password["admin"]),
            *("--bootstrap-username", "admin", "--bootstrap-project-name", "admin"),
            *("--bootstrap-role-name", "admin", "--bootstrap-service-name", "keystone"),
            *("--bootstrap-region-id", REGION, "--bootstrap-public-url", url),
            *("--bootstrap-internal-url", url, "--bootstrap-admin-url", url),
        )
        glance = ("--config-file", f"{etc}/glance/glance-api.conf")
        manage(settings, "glance tables", "glance-manage", *glance, "db_sync")
        manage(
            settings, "glance metadefs", "glance-manage", *glance, "db_load_metadefs", str(METADEFS)
        )
        placement = ("--config-file", f"{etc}/placement/placement.conf")
        manage(settings, "placement tables", "placement-manage", *placement, "db", "sync")

    def compute_chain() -> None:
        nova = ("nova-manage", "--config-file", f"{etc}/nova/nova.conf")
        cell0 = (
            f"mysql+pymysql://openstack:{password['database']}@127.0.0.1/nova_cell0?charset=utf8mb4"
        )
        manage(settings, "nova API tables", *nova, "api_db", "sync")
        manage(
            settings, "nova cell0", *nova, "cell_v2", "map_cell0", "--database_connection", cell0
        )
        manage(settings, "nova tables", *nova, "db", "sync")
        manage(settings, "nova cell1", *nova, "cell_v2", "create_cell", "--name=cell1")

    def network_chain() -> None:
        neutron = [f"{etc}/neutron/{name}" for name in ("neutron.conf", "ml2_conf.ini")]
        files = [word for path in neutron for word in ("--config-file", path)]
        manage(settings, "neutron tables", "neutron-db-manage", *files, "upgrade", "heads")

    run_in_parallel(identity_chain, compute_chain, network_chain)
