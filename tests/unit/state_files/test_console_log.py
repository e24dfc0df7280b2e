# SPDX-License-Identifier: Apache-2.0
"""The log files of a console: their number, size and paths."""

from novadocker.state_files import console_log


def test_the_engine_keeps_as_many_files_as_the_exporter_measures() -> None:
    config = console_log.log_config(10)
    assert config == {"Type": "json-file", "Config": {"max-size": "5120k", "max-file": "2"}}
    assert console_log.paths("/c", "ab") == ("/c/ab/ab-json.log", "/c/ab/ab-json.log.1")
