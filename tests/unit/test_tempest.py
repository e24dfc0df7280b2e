# SPDX-License-Identifier: Apache-2.0
"""Results of a run of Tempest by test, their kinds, the page and the list."""

import collections
import csv
import datetime
import io
import re
from pathlib import Path

import pytest
import subunit

from devcloud.tempest import report, results, run, smoke
from devcloud.tempest.results import Exclusion, Result
from devcloud.tempest.workspace import EXCLUDED, NEEDS_VLANS

BEGIN = datetime.datetime(2026, 11, 25, 13, 0, tzinfo=datetime.UTC)

SERVERS = "tempest.api.compute.servers.test_one.Servers"
PASSED = Result("passed", "", 2.0, "2026-11-25 13:00")


def stream(*events: tuple[str, str, str]) -> io.BytesIO:
    """Return a run's stream: tests, their statuses and their reasons."""
    written = io.BytesIO()
    writer = subunit.StreamResultToBytes(written)
    for test, status, text in events:
        writer.status(test_id=test, test_status="inprogress", timestamp=BEGIN)
        if text:
            name = "reason" if status == "skip" else "traceback"
            content = {"file_name": name, "file_bytes": text.encode()}
            writer.status(test_id=test, mime_type="text/plain; charset=utf8", **content)
        if status:
            end = BEGIN + datetime.timedelta(seconds=2)
            writer.status(test_id=test, test_status=status, timestamp=end)
    written.seek(0)
    return written


def test_each_end_of_a_test():
    found = results.read_stream(
        stream(
            (f"{SERVERS}.test_good[id-1,smoke]", "success", ""),
            (f"{SERVERS}.test_bad[id-2]", "fail", "Traceback\n  a line\nKeyError: 'x'\nUser: u\n"),
            (f"{SERVERS}.test_left[id-3]", "skip", "Cinder is not available"),
        ),
        [],
    )
    assert found == {
        f"{SERVERS}.test_good": PASSED,
        f"{SERVERS}.test_bad": Result("failed", "KeyError: 'x'", 2.0, "2026-11-25 13:00"),
        f"{SERVERS}.test_left": Result("skipped", "Cinder is not available", 2.0, PASSED.date),
    }


def test_what_an_exception_was_about_is_told_with_it():
    text = "Traceback\n  a line\nfoo.TimeoutException: Request timed out\nDetails: not ACTIVE\n"
    found = results.read_stream(stream((f"{SERVERS}.test_late", "fail", text)), [])
    reason = "foo.TimeoutException: Request timed out Details: not ACTIVE"
    assert found[f"{SERVERS}.test_late"].reason == reason


def test_a_worker_that_died_fails_its_test():
    found = results.read_stream(stream((f"{SERVERS}.test_cut[id-1]", "", "")), [])
    assert found[f"{SERVERS}.test_cut"].status == "failed"


def test_a_class_that_skips_skips_all_its_tests():
    listed = [f"{SERVERS}.test_one", f"{SERVERS}.test_two", f"{SERVERS}Other.test_one"]
    found = results.read_stream(stream((f"setUpClass ({SERVERS})", "skip", "no VNC")), listed)
    assert {name: result.reason for name, result in found.items()} == {
        f"{SERVERS}.test_one": "no VNC",
        f"{SERVERS}.test_two": "no VNC",
    }


def test_a_class_that_cannot_clean_up_has_failed():
    name = f"{SERVERS}.test_one"
    found = results.read_stream(
        stream((name, "success", ""), (f"tearDownClass ({SERVERS})", "fail", "Boom: left")), [name]
    )
    assert found[name].status == "failed"
    assert found[name].reason == "Boom: left"


def test_every_exclusion_has_a_reason(tmp_path: Path):
    for path in (EXCLUDED, NEEDS_VLANS):
        rules = results.read_exclusions(path)
        assert rules
        assert all(report.kind_of(rule.reason) != report.OTHER for rule in rules)
    bad = tmp_path / "excluded.txt"
    bad.write_text("test_without_reason\n")
    with pytest.raises(ValueError, match="no reason"):
        results.read_exclusions(bad)


@pytest.mark.parametrize("there", [True, False])
def test_what_needs_vlan_devices_is_left_out_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, there: bool
):
    trunk = "neutron_tempest_plugin.scenario.test_trunk.TrunkTest"
    tests = [f"{trunk}.test_subport_connectivity", f"{trunk}.test_trunk_subport_lifecycle"]
    monkeypatch.setattr(run, "has_vlan_devices", lambda: there)
    left_out = results.exclude(tests, run.exclusions(), PASSED.date)
    assert set(left_out) == (set() if there else {tests[0]})


def test_excluded_by_name(tmp_path: Path):
    file = tmp_path / "excluded.txt"
    file.write_text(r"# about" "\n\n" r"Servers\.test_t # VM-only: it boots a kernel" "\n")
    (rule,) = results.read_exclusions(file)
    assert isinstance(rule, Exclusion)
    found = results.exclude([f"{SERVERS}.test_two", f"{SERVERS}.test_one"], [rule], "now")
    assert found == {
        f"{SERVERS}.test_two": Result("excluded", "VM-only: it boots a kernel", 0.0, "now")
    }


def test_later_results_replace_earlier_ones(tmp_path: Path):
    file = tmp_path / "results.json"
    assert results.load(file) == {}
    results.save(file, {"a": PASSED})
    assert results.load(file) == {"a": PASSED}


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Live migration is not available.", "needs live migration"),
        ("Volume-backed live migration not available", "needs live migration"),
        ("VNC Console feature is disabled.", "graphics console"),
        ("ServersTest skipped as Cinder is not available", "needs Cinder"),
        ("Skipped because the volume service is not available", "needs Cinder"),
        ("Skipped until bug: 1186354 is resolved.", "skipped upstream"),
        ("nova-network is not available.", "skipped upstream"),
        ("Neutron allows duplicate names for security groups", "skipped upstream"),
        ("The microversion range[3.27 - latest] of this test is out of", "needs Cinder"),
        ("East/west icmp fragmentation is not supported with ML2/OVN", "skipped upstream"),
        ("needs another service: L3 agents that distribute routers", "needs another service"),
        ("Horizon support is required", "needs another service"),
        ("IDE bus not available.", "VM-only"),
        ("VM-only: ephemeral disks are refused", "VM-only"),
        ("Sun is not shining", report.OTHER),
    ],
)
def test_kinds(reason: str, kind: str):
    assert report.kind_of(reason) == kind


SOME_RESULTS = {
    f"{SERVERS}.test_good": PASSED,
    f"{SERVERS}.test_bad": Result("failed", "it `says` this", 30.0, "2026-11-26 09:00"),
    "tempest.scenario.test_two.Two.test_left": Result("skipped", "no VNC,\nso", 0.0, PASSED.date),
    f"{SERVERS}.test_never": Result("excluded", "VM-only: a kernel", 0.0, PASSED.date),
}


def test_page():
    text = report.page(SOME_RESULTS, {})
    assert "from 2026-11-25 13:00 to 2026-11-26 09:00 UTC" in text
    compute = ["``tempest.api.compute``", "3", "1", "1", "1"]
    assert "\n     - ".join(compute) in text
    assert f"* ``{SERVERS}.test_bad``: ``it 'says' this``" in text
    assert "* - graphics console\n     - 0\n     - 1\n" in text
    assert ":download:`results/tempest.csv`" in text


def test_the_list_has_every_test_that_did_not_pass():
    assert report.data(SOME_RESULTS).splitlines() == [
        "kind,reason,status,test",
        f"VM-only,VM-only: a kernel,excluded,{SERVERS}.test_never",
        f"failed,it `says` this,failed,{SERVERS}.test_bad",
        'graphics console,"no VNC, so",skipped,tempest.scenario.test_two.Two.test_left',
    ]


def test_page_and_list_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "PAGE", tmp_path / "tempest.rst")
    monkeypatch.setattr(report, "DATA", tmp_path / "tempest.csv")
    report.write(SOME_RESULTS, {})
    assert (tmp_path / "tempest.rst").read_text() == report.page(SOME_RESULTS, {})
    assert (tmp_path / "tempest.csv").read_text() == report.data(SOME_RESULTS)


def test_the_page_and_the_list_of_the_repository_agree():
    """The figures count the tests that the list names."""
    page = report.PAGE.read_text()
    rows = list(csv.DictReader(report.DATA.read_text().splitlines()))
    left_out = collections.Counter(
        report.suite_of(row["test"]) for row in rows if row["status"] in ("skipped", "excluded")
    )
    failed = collections.Counter(
        report.suite_of(row["test"]) for row in rows if row["status"] == "failed"
    )
    figures = re.findall(r"^   \* - ``(.+)``\n" + r"     - (\d+)\n" * 4, page, re.MULTILINE)
    assert {suite for suite, *_ in figures} >= left_out.keys() | failed.keys()
    for suite, total, passed, not_passed, left in figures:
        assert (int(not_passed), int(left)) == (failed[suite], left_out[suite])
        assert int(total) == int(passed) + int(not_passed) + int(left)


def test_what_passes_on_the_fake_driver_too_says_nothing():
    own = {f"{SERVERS}.test_{name}": PASSED for name in ("one", "two", "three", "not_tried")}
    own[f"{SERVERS}.test_three"] = Result("failed", "Boom", 1.0, "2026-11-25 13:00")
    own["tempest.scenario.test_two.Two.test_other"] = PASSED
    fake = {f"{SERVERS}.test_{name}": PASSED for name in ("one", "three")}
    fake[f"{SERVERS}.test_two"] = Result("failed", "SSHTimeout", 1.0, "2026-11-25 14:00")
    text = report.control(own, fake)
    assert "Of the 3 tests that pass on this driver, 2 ran there," in text
    assert "1 pass there too, and 1 test a driver." in text


def test_smoke_names():
    names = smoke.names()
    assert names == sorted(set(names))
    assert all(name.startswith("tempest.") for name in names)
