"""A soak of seconds; `nox -s soak` runs the one of twenty minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.campaign.mutations import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc"),
]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_short_soak(tmp_path: Path, backend: str) -> None:
    """Stalls, errors, kills and cancelled calls cost no sample, no file and no process."""
    summary = tmp_path / "summary.json"
    options = ["--minutes", "0.05", "--block", "4", "--backend", backend, "--seed", "3"]
    options += ["--stall-every", "4", "--fail-every", "1", "--folder", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "tests.soak", *options, "--json", str(summary)],
        cwd=PROJECT,
        check=True,
        timeout=110,
    )
    told = json.loads(summary.read_text())
    assert told["problems"] == []
    assert told["trials compared"] == told["trials"] >= 16
    assert told["errors of the disk"] > 0
    assert told["calls cancelled"] > 0
