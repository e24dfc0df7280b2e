# SPDX-License-Identifier: Apache-2.0
"""Starting the cloud from any earlier state."""

import functools
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import amqp  # type: ignore[import-untyped]

from devcloud import (
    compute_user,
    configuration,
    dashboard,
    database,
    identity,
    images,
    leftovers,
    network,
    observers,
    ovn,
    owner,
    readiness,
    secure_shell,
    seed,
    supervise,
    switch,
    volumes,
    watch,
)
from devcloud.down import down
from devcloud.host import ensure_namespaces
from devcloud.program import Program
from devcloud.programs import all_programs
from devcloud.settings import (
    API_ADDRESS,
    DASHBOARD_PORT,
    Settings,
    dashboard_file,
    hosts_file,
    load_secrets,
    network_file,
    volumes_file,
    watch_file,
)
from devcloud.steps import run_in_parallel, say, step, wait_until

API_PORTS = {
    "keystone": 5000,
    "placement": 8778,
    "glance": 9292,
    "nova-api": 8774,
    "nova-metadata": 8775,
    "neutron-api": 9696,
    "registry": 5001,
    "cinder-api": volumes.API_PORT,
    "horizon": DASHBOARD_PORT,
    "prometheus": watch.PROMETHEUS_PORT,
    "alertmanager": watch.ALERTMANAGER_PORT,
}

# These APIs run only in some clouds, so start_services() does not wait for all of them.
OPTIONAL_APIS = ("cinder-api", "horizon", "prometheus", "alertmanager")

# A first message to a queue without a reader waits for a whole RPC timeout.
QUEUES = {
    "neutron-rpc": ("q-plugin", "q-reports-plugin"),
    "nova-conductor": ("conductor",),
}
# The queue of Neutron's L3 agents.
ROUTER_QUEUE = "q-l3-plugin"


def answers(port: int) -> bool:
    """Return True if an API gives an HTTP response below 500, which includes 401."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"http://{API_ADDRESS}:{port}/", timeout=10).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
    return True


def wait_for_service(settings: Settings, name: str, what: str, ready: Callable[[], bool]) -> None:
    """Wait until a program is ready; fail at once if it is dead."""
    begin = time.monotonic()

    def ready_or_dead() -> bool:
        supervise.require_running(settings, name)
        return ready()

    wait_until(
        ready_or_dead,
        what=what,
        advice=f"python3 -m devcloud ctl restart {name}",
        log=settings.log / f"{name}.log",
        timeout=readiness.READY_SECONDS,
    )
    if time.monotonic() - begin > 1:
        say(f"  {what} ({time.monotonic() - begin:.1f} s)")


def apis(settings: Settings) -> list[str]:
    """Return the names of the APIs that start together."""
    own = [name for name in API_PORTS if name not in OPTIONAL_APIS]
    return [*own, "horizon"] if settings.dashboard else own


def wait_for_api(settings: Settings, name: str) -> None:
    """Wait until an API answers."""

    wait_for_service(settings, name, f"{name} answers", lambda: answers(API_PORTS[name]))


def wait_for_queues(settings: Settings, name: str) -> None:
    """Wait until a service consumes its message queues."""
    password = load_secrets(settings)["rabbit"]
    queues = [*QUEUES[name]]
    if name == "neutron-rpc" and settings.network == "ovs":
        queues.append(ROUTER_QUEUE)

    def ready() -> bool:
        try:
            with amqp.Connection(
                f"{API_ADDRESS}:5672", userid="openstack", password=password, connect_timeout=5
            ) as connection:
                for queue in queues:
                    with connection.channel() as channel:
                        if channel.queue_declare(queue, passive=True).consumer_count == 0:
                            return False
        except (OSError, amqp.exceptions.AMQPError):
            return False
        return True

    wait_for_service(settings, name, f"{name} reads its queues", ready)


class Starter:
    """Starts programs stage by stage.

    :ivar first_start: time of the first program's start; None if all were running before.
    """

    def __init__(self, settings: Settings, programs: list[Program]) -> None:
        self._settings = settings
        self._programs = programs
        self._lock = threading.Lock()
        self.first_start: float | None = None

    def start(self, *stages: str) -> list[str]:
        """Start the programs of these stages that are not running, and return their names."""
        names = [program.name for program in self._programs if program.stage in stages]
        begin = time.time()
        started = supervise.start_programs(self._settings, names)
        with self._lock:
            if started and self.first_start is None:
                self.first_start = begin
        return started


def prepare_machine(settings: Settings) -> None:
    """Create the directories, network namespaces, compute user and configuration."""
    for folder in ("glance/images", "glance/staging", "glance/tasks", "locks", "registry"):
        (settings.data / folder).mkdir(parents=True, exist_ok=True)
    for path in (settings.data / "rabbitmq", settings.log / "rabbitmq"):
        path.mkdir(parents=True, exist_ok=True)
    for host in settings.hosts:
        settings.host_run(host).mkdir(parents=True, exist_ok=True)
        (settings.host_data(host) / "neutron").mkdir(parents=True, exist_ok=True)
        ensure_namespaces(settings, host)
    network.ensure_link()
    compute_user.ensure_user()
    for host in settings.hosts:
        compute_user.ensure_folders(settings, host)
    secure_shell.ensure_keys(settings)
    configuration.write_configuration(settings)
    compute_user.ensure_sudo_rule(settings)
    compute_user.require_readable(settings)


def note_choices(settings: Settings) -> None:
    """Record what the cloud has, for later commands without these settings."""
    network_file(settings.folder).write_text(settings.network)
    for wanted, noted in (
        (settings.dashboard, dashboard_file(settings.folder)),
        (settings.watch, watch_file(settings.folder)),
        (settings.volumes, volumes_file(settings.folder)),
    ):
        noted.touch() if wanted else noted.unlink(missing_ok=True)


def start_switches(settings: Settings, starter: Starter) -> None:
    """Start Open vSwitch on each host, with its settings and provider bridges."""
    for host in settings.hosts:
        wait_until(
            functools.partial(switch.listens, settings, host),
            what=f"Open vSwitch's database on {host.name}",
            advice=f"python3 -m devcloud ctl restart ovsdb-{host.name}",
            log=settings.log / f"ovsdb-{host.name}.log",
            timeout=20,
            interval=0.05,
        )
        switch.prepare(settings, host)
    starter.start("switch")
    for host in settings.hosts:
        switch.make_bridges(settings, host)


def start_infrastructure(settings: Settings, starter: Starter) -> None:
    """Start the databases, message bus, switches and engines, and create the tables."""
    if not database.has_data_folder(settings):
        with step("MariaDB data folder"):
            database.make_data_folder(settings)
    current = supervise.states(settings)
    for host in settings.hosts:
        if current[f"ovsdb-{host.name}"] != "RUNNING":
            switch.make_database(settings, host)
    if settings.network == "ovn":
        ovn.make_databases(settings)
    starter.start("infrastructure")
    with step("Open vSwitch"):
        start_switches(settings, starter)
    with step("MariaDB"):
        wait_until(
            lambda: database.answers(settings),
            what="MariaDB answers",
            advice="python3 -m devcloud ctl restart mariadb",
            log=settings.log / "mariadb.log",
        )
    if not database.tables_made(settings).exists():
        with step("databases"):
            database.create_databases(settings)
            database.make_tables(settings)
            database.tables_made(settings).touch()
    for host in settings.hosts:
        with step(f"Docker Engine on {host.name}"):
            wait_until(
                settings.engine_socket(host).is_socket,
                what="the engine's socket",
                advice=f"python3 -m devcloud ctl restart docker-{host.name}",
                log=settings.log / f"docker-{host.name}.log",
            )


def start_services(settings: Settings, starter: Starter) -> None:
    """Start the APIs, the services behind them, the agents and nova-compute."""
    starter.start("identity")
    with step("keystone"):
        wait_for_api(settings, "keystone")
    identity.ensure_accounts(settings)
    starter.start("service")

    def agents() -> None:
        wait_for_queues(settings, "neutron-rpc")
        starter.start("agent")

    def compute() -> None:
        wait_for_queues(settings, "nova-conductor")
        starter.start("compute")

    def block_storage() -> None:
        volumes.ensure_tables(settings)
        starter.start("volume")
        wait_for_api(settings, "cinder-api")

    chains = [agents, compute, *([block_storage] if settings.volumes else [])]
    interfaces = [functools.partial(wait_for_api, settings, name) for name in apis(settings)]
    with step("APIs"):
        run_in_parallel(*chains, *interfaces)


def up(settings: Settings) -> None:
    """Start the cloud, in a minute. Takes a few seconds if the cloud is running.

    :raises StepFailed: a service did not start in time.
    """
    owner.require_own(settings)
    if supervise.is_alive(settings) and not database.tables_made(settings).exists():
        # The first start was interrupted, and its commands may still be changing the tables.
        down(settings)
    if not supervise.is_alive(settings):
        with step("leftovers of an earlier run removed"):
            leftovers.clear(settings)
    owner.claim(settings)
    hosts_file(settings.folder).parent.mkdir(parents=True, exist_ok=True)
    hosts_file(settings.folder).write_text(str(len(settings.hosts)))
    note_choices(settings)
    with step("network namespace, user, configuration"):
        prepare_machine(settings)
    if settings.dashboard:
        dashboard.prepare(settings)
    if settings.watch:
        watch.prepare(settings)
    if settings.volumes:
        volumes.prepare(settings)
    with step("supervisor"):
        programs = all_programs(settings)
        supervise.write_config(settings, programs)
        supervise.ensure_supervisor(settings)
    with images.building(settings) as archives:
        starter = Starter(settings, programs)
        start_infrastructure(settings, starter)
        start_services(settings, starter)
        if settings.watch:
            watch.name_contact(settings)
            # These programs report to none of the cloud's APIs, so no report is awaited.
            supervise.start_programs(
                settings, [program.name for program in programs if program.stage == "watch"]
            )
            with step("Prometheus"):
                run_in_parallel(
                    functools.partial(wait_for_api, settings, "prometheus"),
                    functools.partial(wait_for_api, settings, "alertmanager"),
                )
        if starter.first_start is not None:
            with step("agents and nova-compute report"):
                readiness.wait_for_reports(settings, starter.first_start)
        if not seed.is_seeded(settings):
            seed.seed(settings, archives)
        if settings.network == "ovn":
            with step("observers of the tenant's networks"):
                observers.ensure(settings)
    say("the cloud is up")
    if settings.dashboard:
        say(f"  dashboard: {dashboard.URL}, domain Default, passwords in *-openrc")
    if settings.watch:
        say(f"  Prometheus: {watch.url(watch.PROMETHEUS_PORT)}")
        say(f"  Alertmanager: {watch.url(watch.ALERTMANAGER_PORT)}")
    say(f"  . {settings.folder}/demo-openrc    (or admin-openrc), then: openstack server list")
