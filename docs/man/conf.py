# SPDX-License-Identifier: Apache-2.0
"""Configuration of Sphinx for the manual pages, which need no package but Sphinx."""

project = "novadocker"
author = "novadocker developers"

man_pages = [
    (name, name, description, [], 8)
    for name, description in {
        "novadocker-act": "pause or throttle servers with alarms",
        "novadocker-contacts": "serve the contacts of projects to Prometheus",
        "novadocker-engine-config": "register the runtime shim with the Docker Engine",
        "novadocker-engine-proxy": "pass only the compute driver's requests to the Docker Engine",
        "novadocker-exporter": "serve the metrics of a host's servers to Prometheus",
        "novadocker-image": "inspect, flatten, convert and upload image archives",
        "novadocker-log": "print the lines of the kernel's log about one server",
        "novadocker-receive": "receive a server that moves to this host",
        "novadocker-recover": "read servers while the Docker Engine is down",
        "novadocker-status": "check whether a host is ready to run servers",
    }.items()
]
