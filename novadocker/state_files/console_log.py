# SPDX-License-Identifier: Apache-2.0
"""The files in which the engine's log driver ``json-file`` keeps the output of a console.

The driver sets their number and size, the exporter measures them.
"""

# The engine writes to the first file and renames it to the second when it is full.
_SUFFIXES = ("-json.log", "-json.log.1")


def log_config(max_mib: int) -> dict[str, object]:
    """Return the engine's ``LogConfig`` of a container.

    :param max_mib: size of all files in MiB
    """
    size = max_mib * 1024 // len(_SUFFIXES)
    return {
        "Type": "json-file",
        "Config": {"max-size": f"{size}k", "max-file": str(len(_SUFFIXES))},
    }


def paths(containers: str, container_id: str) -> tuple[str, ...]:
    """Return the paths of a container's log files, which need not exist.

    :param containers: the directory ``containers`` of the engine's data root
    """
    return tuple(f"{containers}/{container_id}/{container_id}{suffix}" for suffix in _SUFFIXES)
