# SPDX-License-Identifier: Apache-2.0
"""The descriptions of all the cloud's programs for supervisor. Pure: this starts none of them."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from devcloud import ovn, volumes, watch
from devcloud.host import inside
from devcloud.program import Program
from devcloud.settings import API_ADDRESS, COMPUTE_USER, DASHBOARD_PORT, Host, Settings

FAKE_COMPUTE = "nova-compute-fake"

# The Debian wrapper switches to the user rabbitmq and to directories in /var.
RABBIT_TOOLS = "/usr/lib/rabbitmq/lib"


def infrastructure(settings: Settings) -> Iterable[Program]:
    """Return the database, the message bus and the cache."""
    etc, run = settings.etc, settings.run
    yield Program(
        "mariadb",
        ("/usr/sbin/mariadbd", f"--defaults-file={etc}/mariadb.cnf"),
        (etc / "mariadb.cnf",),
        stop_wait=30,
        stage="infrastructure",
    )
    yield Program(
        "memcached",
        ("/usr/bin/memcached", "-u", "nobody", "-l", "127.0.0.1", "-m", "128", "-t", "2"),
        stage="infrastructure",
    )
    # RabbitMQ would start an epmd daemon that outlives it, so supervisor starts one first.
    yield Program(
        "epmd",
        ("/usr/bin/epmd", "-address", "127.0.0.1"),
        # epmd ignores SIGTERM while a node is registered.
        stop_signal="KILL",
        stage="infrastructure",
    )
    rabbit = {
        "HOME": settings.data / "rabbitmq",
        "RABBITMQ_NODENAME": "rabbit@localhost",
        "RABBITMQ_MNESIA_BASE": settings.data / "rabbitmq" / "mnesia",
        "RABBITMQ_LOG_BASE": settings.log / "rabbitmq",
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_CONFIG_FILE": etc / "rabbitmq",
        "RABBITMQ_ENABLED_PLUGINS_FILE": etc / "rabbitmq-plugins",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_PID_FILE": run / "rabbitmq.pid",
        # Because the machine is small, one scheduler thread without busy waiting.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
    }
    yield Program(
        "rabbitmq",
        (str(rabbit_server()),),
        (etc / "rabbitmq.conf",),
        tuple((name, str(value)) for name, value in rabbit.items()),
        stop_wait=6,
        stage="infrastructure",
    )


def rabbit_server() -> Path:
    """Return the path of RabbitMQ's own start script; its directory contains the version."""
    found = sorted(Path(RABBIT_TOOLS).glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    return found[-1] if found else Path(RABBIT_TOOLS) / "rabbitmq-server"


def wsgi(
    settings: Settings,
    name: str,
    port: int,
    module: str,
    config: tuple[Path, ...],
    environment: dict[str, str],
    threads: int = 8,
) -> Program:
    """Return an API served by uWSGI."""
    return Program(
        name,
        (
            f"{settings.bin}/pyuwsgi",
            *("--ini", f"{settings.etc}/uwsgi.ini"),
            *("--procname-prefix", f"{name} "),
            *("--http-socket", f"{API_ADDRESS}:{port}"),
            *("--module", f"{module}:application"),
            *("--threads", str(threads)),
        ),
        (settings.etc / "uwsgi.ini", *config),
        tuple(environment.items()),
        # On SIGTERM, uWSGI waits for idle threads too.
        stop_signal="INT",
        stop_wait=2,
    )


def control_plane(settings: Settings) -> Iterable[Program]:
    """Return the APIs and the services behind them."""
    etc, scripts = settings.etc, settings.bin
    keystone = etc / "keystone"
    yield dataclasses.replace(
        wsgi(
            settings,
            "keystone",
            5000,
            "keystone.wsgi.api",
            (keystone / "keystone.conf",),
            {"OS_KEYSTONE_CONFIG_DIR": str(keystone)},
        ),
        stage="identity",
    )
    yield wsgi(
        settings,
        "placement",
        8778,
        "placement.wsgi.api",
        (etc / "placement" / "placement.conf",),
        {"OS_PLACEMENT_CONFIG_DIR": str(etc / "placement")},
    )
    yield wsgi(
        settings,
        "glance",
        9292,
        "glance.wsgi.api",
        (etc / "glance" / "glance-api.conf",),
        {"OS_GLANCE_CONFIG_DIR": str(etc / "glance")},
    )
    nova = {
        "OS_NOVA_CONFIG_DIR": str(etc / "nova"),
        # The paste file must be the first one.
        "OS_NOVA_CONFIG_FILES": "api-paste.ini;nova.conf",
    }
    nova_conf = etc / "nova" / "nova.conf"
    yield wsgi(settings, "nova-api", 8774, "nova.wsgi.osapi_compute", (nova_conf,), nova)
    yield wsgi(settings, "nova-metadata", 8775, "nova.wsgi.metadata", (nova_conf,), nova, threads=4)
    for name in ("nova-conductor", "nova-scheduler"):
        yield Program(name, (f"{scripts}/{name}", "--config-file", str(nova_conf)), (nova_conf,))
    yield Program(
        "nova-serialproxy",
        (f"{scripts}/nova-serialproxy", "--config-file", str(nova_conf)),
        (nova_conf,),
    )
    neutron = (etc / "neutron" / "neutron.conf", etc / "neutron" / "ml2_conf.ini")
    yield wsgi(
        settings,
        "neutron-api",
        9696,
        "neutron.wsgi.api",
        neutron,
        {
            "OS_NEUTRON_CONFIG_DIR": str(etc / "neutron"),
            "OS_NEUTRON_CONFIG_FILES": "neutron.conf;ml2_conf.ini",
        },
    )
    workers = {"rpc": "neutron-rpc-server", "periodic": "neutron-periodic-workers"}
    if settings.network == "ovn":
        workers["ovn-maintenance"] = "neutron-ovn-maintenance-worker"
    for name, script in workers.items():
        command = (f"{scripts}/{script}", *config_files(neutron))
        yield Program(f"neutron-{name}", command, neutron)
    yield Program(
        "registry",
        ("/usr/bin/docker-registry", "serve", str(etc / "registry.yml")),
        (etc / "registry.yml",),
    )


def dashboard(settings: Settings) -> Program:
    """Return Horizon, served without a web server."""
    folder = settings.etc / "horizon"
    return Program(
        "horizon",
        (
            f"{settings.dashboard_folder}/venv/bin/gunicorn",
            *("--bind", f"{API_ADDRESS}:{DASHBOARD_PORT}"),
            # Threads would share connections to memcached, so there are processes instead.
            *("--workers", "2", "--timeout", "120", "--no-control-socket"),
            "openstack_dashboard.wsgi:application",
        ),
        (folder / "local" / "local_settings.py",),
        (("PYTHONPATH", str(folder)),),
    )


def volume_api(settings: Settings) -> Program:
    """Return Cinder's API, which reads its configuration file from its arguments."""
    config = volumes.config(settings)
    api = wsgi(settings, "cinder-api", volumes.API_PORT, "cinder.wsgi.api", (config,), {}, 4)
    command = (*api.command, "--pyargv", f"--config-file={config}")
    return dataclasses.replace(api, command=command, stage="volume")


def config_files(paths: Iterable[Path]) -> tuple[str, ...]:
    """Return oslo.config's arguments for a list of files."""
    return tuple(word for path in paths for word in ("--config-file", str(path)))


def switch(settings: Settings, host: Host) -> Iterable[Program]:
    """Return one host's Open vSwitch programs, for the user-space datapath."""
    data, run = settings.host_data(host) / "ovs", settings.host_run(host) / "ovs"
    folders = (
        ("OVS_RUNDIR", str(run)),
        ("OVS_DBDIR", str(data)),
        ("OVS_LOGDIR", str(settings.log)),
    )
    yield Program(
        f"ovsdb-{host.name}",
        (
            "/usr/sbin/ovsdb-server",
            str(data / "conf.db"),
            f"--remote=punix:{run}/db.sock",
            "--remote=ptcp:6640:127.0.0.1",
            f"--unixctl={run}/ovsdb.ctl",
            "-vsyslog:off",
        ),
        environment=folders,
        stage="infrastructure",
    )
    yield Program(
        f"ovs-{host.name}",
        (
            "/usr/sbin/ovs-vswitchd",
            f"unix:{run}/db.sock",
            f"--unixctl={run}/vswitchd.ctl",
            "-vsyslog:off",
        ),
        environment=folders,
        stage="switch",
    )


def engine(settings: Settings, host: Host) -> Program:
    """Return one host's Docker Engine. Its shell first unmounts a killed engine's partial roots."""
    config = settings.host_etc(host) / "daemon.json"
    half_made = f"{settings.host_data(host)}/docker/overlay2/*-init/merged"
    return Program(
        f"docker-{host.name}",
        (
            *("/bin/sh", "-c"),
            f"umount {half_made} 2>/dev/null; exec /usr/sbin/dockerd --config-file {config}",
        ),
        (config,),
        stop_wait=30,
        stage="infrastructure",
    )


def lxcfs(settings: Settings, host: Host) -> Program:
    """Return one host's lxcfs. Its shell first unmounts an earlier lxcfs's mount point."""
    mount = settings.lxcfs_folder(host)
    serve = f"/usr/bin/lxcfs -f -l --enable-cfs -p {settings.host_run(host)}/lxcfs.pid {mount}"
    return Program(
        f"lxcfs-{host.name}",
        (
            *("/bin/sh", "-c"),
            f"umount -l {mount} 2>/dev/null; mkdir -p {mount} && exec {serve}",
        ),
        stage="infrastructure",
    )


def secure_shell(settings: Settings, host: Host) -> Program:
    """Return one host's sshd, which receives migrations from other hosts."""
    config = settings.host_etc(host) / "sshd_config"
    return Program(
        f"sshd-{host.name}",
        ("/usr/sbin/sshd", "-D", "-e", "-f", str(config)),
        (config,),
        stage="infrastructure",
    )


def neutron_agents(settings: Settings, host: Host) -> Iterable[Program]:
    """Return the Neutron agents of one host."""
    etc = settings.host_etc(host)
    common = etc / "neutron.conf"
    scripts = settings.bin
    agents: dict[str, tuple[tuple[str, ...], str]] = {}
    if settings.network == "ovn":
        agents["neutron-ovn"] = ((f"{scripts}/neutron-ovn-agent",), "ovn_agent.ini")
    else:
        agents["neutron-ovs"] = (
            (f"{scripts}/neutron-openvswitch-agent",),
            "openvswitch_agent.ini",
        )
    if host.network_node and settings.network == "ovs":
        one_worker = (f"{scripts}/python", str(Path(__file__).parent / "one_worker.py"))
        agents |= {
            "neutron-dhcp": ((*one_worker, "dhcp"), "dhcp_agent.ini"),
            "neutron-l3": ((*one_worker, "l3"), "l3_agent.ini"),
            "neutron-metadata": ((f"{scripts}/neutron-metadata-agent",), "metadata_agent.ini"),
        }
    for name, (command, file) in agents.items():
        config = (common, etc / file)
        yield Program(
            f"{name}-{host.name}",
            (*command, *config_files(config)),
            config,
            # ovs-ofctl looks for the bridges' sockets there.
            environment=(("OVS_RUNDIR", str(settings.host_run(host) / "ovs")),),
            stage="agent",
        )


def nova_compute(settings: Settings, name: str, config: Path, host: Host) -> Program:
    """Return an unprivileged nova-compute."""
    return Program(
        name,
        (f"{settings.bin}/nova-compute", *config_files([config])),
        (config,),
        (("HOME", str(settings.host_data(host) / "nova")), ("USER", COMPUTE_USER)),
        user=COMPUTE_USER,
        stop_wait=12,
        stage="compute",
    )


def elsewhere(settings: Settings, host: Host, program: Program) -> Program:
    """Return a program as it runs on a host that does not share supervisor's namespaces."""
    command: list[str | Path] = [*program.command]
    if program.user is not None:
        # Only root can enter the namespaces, so setpriv changes the user inside.
        own = ["--reuid", program.user, "--regid", program.user, "--init-groups"]
        command = ["/usr/bin/setpriv", *own, "--", *command]
    entered = tuple(map(str, inside(settings, host, command)))
    return dataclasses.replace(program, command=entered, user=None)


def all_programs(settings: Settings) -> list[Program]:
    """Return all programs of the cloud, including those that ``up`` does not start."""
    programs = [*infrastructure(settings), *control_plane(settings)]
    if settings.dashboard:
        programs.append(dashboard(settings))
    if settings.watch:
        programs += watch.programs(settings)
    if settings.volumes:
        programs += [volume_api(settings), *volumes.programs(settings)]
    if settings.network == "ovn":
        programs += ovn.central(settings)
    for host in settings.hosts:
        etc = settings.host_etc(host)
        own = [*switch(settings, host), lxcfs(settings, host), engine(settings, host)]
        own.append(secure_shell(settings, host))
        own += [ovn.controller(settings, host)] if settings.network == "ovn" else []
        own += neutron_agents(settings, host)
        own += [watch.exporter(settings, host)] if settings.watch else []
        own.append(
            nova_compute(settings, f"nova-compute-{host.name}", etc / "nova-compute.conf", host)
        )
        programs += own if host.gateway is None else [elsewhere(settings, host, p) for p in own]
    first = settings.hosts[0]
    fake = nova_compute(
        settings, FAKE_COMPUTE, settings.host_etc(first) / "nova-compute-fake.conf", first
    )
    return [*programs, dataclasses.replace(fake, stage="extra")]
