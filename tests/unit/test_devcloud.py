# SPDX-License-Identifier: Apache-2.0
"""What the devcloud takes from the environment and remembers."""

from pathlib import Path

import pytest

from devcloud.programs import all_programs
from devcloud.settings import dashboard_file, load_settings


@pytest.mark.parametrize(
    ("wanted", "had", "has"),
    [("1", False, True), ("0", True, False), ("", True, True), ("", False, False)],
)
def test_the_dashboard_stays_as_it_is_unless_told(
    tmp_path: Path, wanted: str, had: bool, has: bool
):
    noted = dashboard_file(tmp_path)
    noted.parent.mkdir()
    if had:
        noted.touch()
    settings = load_settings({"DEVCLOUD_DIR": str(tmp_path), "DEVCLOUD_HORIZON": wanted})
    assert settings.dashboard is has


def test_only_a_cloud_with_a_dashboard_runs_horizon(tmp_path: Path):
    for wanted, expected in (("1", True), ("0", False)):
        settings = load_settings({"DEVCLOUD_DIR": str(tmp_path), "DEVCLOUD_HORIZON": wanted})
        names = [program.name for program in all_programs(settings)]
        assert ("horizon" in names) is expected
