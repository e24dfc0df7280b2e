#!/bin/bash
#
# DevStack plugin of novadocker: nova-compute runs Docker containers as servers.
#
# local.conf.sample beside this file is a whole local.conf. The plugin needs these lines of it:
#
#   VIRT_DRIVER=docker
#   enable_plugin novadocker <URL of the repository>

# Save trace setting
_XTRACE_NOVADOCKER=$(set +o | grep xtrace)
set +o xtrace

# check_novadocker_settings() - Stop before anything is installed if the driver would not work
function check_novadocker_settings {
    # For this value DevStack starts nova-compute in the group that may use the engine.
    if [[ "$VIRT_DRIVER" != "docker" ]]; then
        die $LINENO "Set VIRT_DRIVER=docker in the localrc section of local.conf"
    fi
    if is_service_enabled cinder; then
        die $LINENO "The plugin sets up no volumes: disable the services of cinder in local.conf"
    fi
    if ! is_ubuntu; then
        exit_distro_not_supported "novadocker's packages of the Docker Engine"
    fi
}

# install_novadocker() - Install the Docker Engine, the programs that the driver calls, the driver
function install_novadocker {
    install_package docker.io genisoimage gzip zstd xz-utils
    # pip compiles crypt_r.
    install_package gcc libcrypt-dev python3-dev
    if [[ "$NOVADOCKER_LXCFS" == "True" ]]; then
        install_package lxcfs
    fi
    setup_develop "$NOVADOCKER_DIR"
}

# configure_novadocker() - Configure the engine, the kernel and nova-compute
function configure_novadocker {
    sudo "$NOVA_BIN_DIR/novadocker-engine-config"
    sudo install -D -m 644 "$NOVADOCKER_DIR/etc/sysctl.d/novadocker.conf" "$NOVADOCKER_SYSCTL_CONF"
    sudo sysctl --load "$NOVADOCKER_SYSCTL_CONF"
    add_user_to_group "$STACK_USER" "$DOCKER_GROUP"
    restart_novadocker_engine

    # DevStack copies NOVA_CONF to the file of nova-compute.
    iniset "$NOVA_CONF" DEFAULT compute_driver docker.DockerDriver
    iniset "$NOVA_CONF" DEFAULT resume_guests_state_on_host_boot True
    if [[ "$Q_AGENT" == "ovn" ]]; then
        iniset "$NOVA_CONF" docker default_name_servers "$(get_novadocker_name_servers)"
    fi
    if [[ "$NOVADOCKER_LXCFS" != "True" ]]; then
        iniset "$NOVA_CONF" docker lxcfs_folder ""
    fi
}

# restart_novadocker_engine() - Restart the engine after it knows live-restore, or all containers stop
function restart_novadocker_engine {
    local second
    # A reload only sends a signal.
    reload_service docker
    for second in {1..60}; do
        if [[ "$(sudo docker info --format '{{.LiveRestoreEnabled}}')" == "true" ]]; then
            restart_service docker
            return
        fi
        sleep 1
    done
    die $LINENO "The engine has not taken live-restore from its configuration in $second s"
}

# get_novadocker_name_servers() - Print name servers that a server can reach, with commas
function get_novadocker_name_servers {
    if [[ -n "$NOVADOCKER_NAME_SERVERS" ]]; then
        echo "$NOVADOCKER_NAME_SERVERS"
        return
    fi
    # A resolver on a loopback address of the host does not answer servers.
    awk '$1 == "nameserver" && $2 !~ /^(127\.|::1$)/ {print $2}' "$NOVADOCKER_RESOLV_CONF" \
        | paste --serial --delimiters=,
}

# check_novadocker_host() - Run the driver's own checks; stop if one failed
function check_novadocker_host {
    local status=0
    sg "$DOCKER_GROUP" \
        "$NOVA_BIN_DIR/novadocker-status --config-file $NOVA_CPU_CONF upgrade check" || status=$?
    # 1 is a warning.
    if [[ $status -gt 1 ]]; then
        die $LINENO "This host cannot run servers: see the results of novadocker-status"
    fi
}

# upload_novadocker_image() - Upload an image of a registry to Glance
function upload_novadocker_image {
    local archive
    archive=$(mktemp)
    sudo docker pull "$NOVADOCKER_IMAGE"
    # shellcheck disable=SC2024 # The archive belongs to the user who uploads it.
    sudo docker save "$NOVADOCKER_IMAGE" > "$archive"
    _upload_image "$DEFAULT_IMAGE_NAME" docker raw "$archive" img_hv_type=docker
    rm -f "$archive"
}

# configure_novadocker_tempest() - Name what the driver supports
function configure_novadocker_tempest {
    local feature
    for feature in live_migration vnc_console spice_console stable_rescue ide_bus \
        attach_encrypted_volume swap_volume volume_multiattach config_drive; do
        iniset "$TEMPEST_CONFIG" compute-feature-enabled "$feature" False
    done
    for feature in change_password serial_console rescue interface_attach snapshot; do
        iniset "$TEMPEST_CONFIG" compute-feature-enabled "$feature" True
    done
    iniset "$TEMPEST_CONFIG" image container_formats docker,bare
    iniset "$TEMPEST_CONFIG" image disk_formats raw
    iniset "$TEMPEST_CONFIG" service_available cinder False
    # The default image has no server of SSH.
    iniset "$TEMPEST_CONFIG" validation run_validation False
}

# cleanup_novadocker() - Undo the configuration of the host; stop before the shim of servers is gone
function cleanup_novadocker {
    # DevStack deletes the environment of the shim next.
    sudo "$NOVA_BIN_DIR/novadocker-engine-config" --remove \
        || die $LINENO "The shim stays, see above: delete servers (docker rm --force), then clean again"
    sudo rm -f "$NOVADOCKER_SYSCTL_CONF"
    reload_service docker
}

if is_service_enabled n-cpu; then
    case "$1 $2" in
        "stack pre-install")
            check_novadocker_settings
            ;;
        "stack install")
            echo_summary "Installing novadocker"
            install_novadocker
            ;;
        "stack post-config")
            echo_summary "Configuring novadocker"
            configure_novadocker
            ;;
        "stack extra")
            check_novadocker_host
            if is_service_enabled g-api && [[ -n "$NOVADOCKER_IMAGE" ]]; then
                upload_novadocker_image
            fi
            ;;
        "stack test-config")
            if is_service_enabled tempest; then
                configure_novadocker_tempest
            fi
            ;;
        "clean ")
            cleanup_novadocker
            ;;
    esac
elif is_service_enabled n-api && [[ "$1 $2" == "stack install" ]]; then
    # nova-api validates the extra specs of flavors by the package.
    setup_develop "$NOVADOCKER_DIR"
fi

# Restore xtrace
$_XTRACE_NOVADOCKER
