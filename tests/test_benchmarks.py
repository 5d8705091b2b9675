"""The benchmarks: every row runs in a tiny size, and says what it must."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.benchmarks import report
from tests.benchmarks.__main__ import main, merged
from tests.benchmarks.content import attrs_of, differences, trial_array
from tests.benchmarks.frame import Check, Outcome, ratio
from tests.benchmarks.peers import PEERS
from tests.benchmarks.process import MeasurementFailed, measure
from tests.benchmarks.rows_loop import lateness
from tests.benchmarks.table import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory and slow disks are measured on Linux"
)


def tiny(folder: Path, *names: str) -> dict[str, Any]:
    """Run rows as the command line does and return the results."""
    told = folder / "results.json"
    code = main(["--tiny", "--only", *names, "--json", str(told), "--folder", str(folder)])
    results: dict[str, Any] = json.loads(told.read_text())
    assert code == 0, results["rows"]
    return results


@pytest.mark.slow
@pytest.mark.leaves_files  # a measurement ends without closing what is not measured
@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_every_row_measures_what_it_promises(name: str, tmp_path: Path) -> None:
    """A row gives checks with a finite value and says whose data were read back and compared."""
    (line,) = tiny(tmp_path, name)["rows"]
    if line["verdict"] == "cannot run here":
        pytest.skip(line["reason"])
    assert line["checks"]
    assert all(0 <= abs(check["value"]) < float("inf") for check in line["checks"])
    assert all(check["samples"] >= 1 for check in line["checks"])
    assert line["verified"]
    assert not [path for path in tmp_path.iterdir() if path.name != "results.json"]


@pytest.mark.slow
@pytest.mark.leaves_files
@pytest.mark.parametrize("name", PEERS)
def test_every_peer_gives_back_what_it_was_given(name: str, tmp_path: Path) -> None:
    """Each peer stores trials from a buffer that is used again, and reads them back unchanged."""
    if (missing := PEERS[name].missing) is not None:
        pytest.skip(missing)
    found = measure(lateness, peer=name, folder=tmp_path, seconds=0.2, verify=True)
    assert found["wrong"] == []
    assert found["ticks"] == 200


def test_a_measurement_that_fails_tells_why(tmp_path: Path) -> None:
    """The last words of the process are in the exception."""
    with pytest.raises(MeasurementFailed, match="KeyError"):
        measure(lateness, peer="nobody", folder=tmp_path, seconds=0.1)


def stored(trials: int) -> Iterator[tuple[dict[str, Any], Any]]:
    return ((attrs_of(trial), trial_array(trial, 4, 3)) for trial in range(trials))


def test_differences_are_found() -> None:
    """A missing trial, a wrong attribute and a wrong sample are each found; equal data are not."""
    assert differences(stored(3), 3, 4, 3) == []
    assert differences(stored(2), 3, 4, 3) == ["2 trials instead of 3"]
    wrong = list(stored(3))
    wrong[1][0]["reaction"] += 1e-9
    wrong[2][1][5, 7] += 1
    wrong[0] = (wrong[0][0], None)
    assert differences(iter(wrong), 3, 4, 3) == [
        "array of trial 0",
        "attributes of trial 1",
        "array of trial 2",
    ]


def test_the_ratio_is_the_median_over_pairs() -> None:
    """One disturbed pair changes nothing."""
    pairs = [({"t": 1.0}, {"t": 2.0}), ({"t": 10.0}, {"t": 20.0}), ({"t": 1.0}, {"t": 900.0})]
    assert ratio(pairs, "t") == 2.0


def test_a_verdict_needs_every_check() -> None:
    """One missed check is a missed row, and no check is no verdict."""
    most = Check("a", 1.0, 1.25, "x", 5)
    least = Check("b", 1.0, 1.25, "x", 5, at_least=True)
    assert Outcome([most]).verdict == "reached"
    assert Outcome([most, least]).verdict == "MISSED"
    assert Outcome().verdict == "nothing measured"


def results(value: float) -> dict[str, Any]:
    check = Check("p99", value, 1.25, "x", 5)
    row = {"name": "lateness", "what": "Lateness", "how": "how", "target": "target"}
    bars = [{"chart": "late", "who": who, "value": 2.0, "unit": "%", "samples": 1} for who in "ab"]
    machine = {
        "processor": "some",
        "processors": 2,
        "memory_gib": 8,
        "platform": "Linux",
        "file_system": "ext4",
        "python": "3",
        "versions": {"trialstore": "1.0"},
    }
    return {
        "when": "2026-01-02T03:04:05+00:00",
        "effort": "quick",
        "seconds": 1.0,
        "machine": machine,
        "peers": [{"label": "AxoPy", "versions": {}, "missing": "not installed", "pattern": ""}],
        "rows": [row | Outcome([check]).to_json() | {"bars": bars}],
    }


def test_the_page_tells_verdicts_and_keeps_a_history(tmp_path: Path) -> None:
    """Two runs stand beside each other; a missed check is bold; plots are there."""
    pytest.importorskip("matplotlib")
    report.write_pages(results(1.0), tmp_path)
    report.write_pages(results(1.5), tmp_path)
    page = (tmp_path / "reference" / "performance.md").read_text()
    assert "| p99 | 1.5 x | <= 1.25 | 5 | **MISSED** |" in page
    assert "| lateness: p99 | 1 x | **1.5 x** |" in page
    assert (tmp_path / "assets" / "performance" / "lateness.svg").read_text().startswith("<?xml")


def test_runs_of_single_rows_are_put_together() -> None:
    """In the order of the table, the newest figures of each; runs of two efforts are refused."""
    first, second = results(1.0), results(2.0)
    second["rows"] += [{"name": "memory"}, {"name": "call"}]
    whole = merged(results(3.0) | {"rows": []}, [second, first])
    assert [row["name"] for row in whole["rows"]] == ["lateness", "call", "memory"]
    assert whole["rows"][0]["checks"] == first["rows"][0]["checks"]
    with pytest.raises(SystemExit, match="not of one effort"):
        merged(first, [second | {"effort": "tiny"}])
