"""Drive one fuzz target with Atheris: ``python -m tests.fuzz TARGET --seconds 120``.

Needs ``atheris`` (CPython 3.11 to 3.13 on Linux and macOS), which `nox -s fuzz` installs. An input
that ends a run is kept in the folder given with ``--findings``; give it back with ``--input FILE``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

#: Loaded by Atheris itself, and so not yet instrumented; its opcodes are what pickles are made of.
sys.modules.pop("pickle", None)
with atheris.instrument_imports(include=["trialstore", "tests.fuzz", "pickle"]):
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import TARGETS

#: A megabyte of any input must do with this much, and an input of a few kilobytes with this time.
_MEMORY_MB = 2048
_SECONDS_PER_INPUT = 10
_LONGEST_INPUT = 1 << 16


def main() -> None:
    """Fuzz until the time is over; exit 77 (libFuzzer's code) at the first finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--input", type=Path, help="run one input and end")
    chosen = parser.parse_args()
    if chosen.input is not None:
        TARGETS[chosen.target](chosen.input.read_bytes())
        return
    chosen.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trialstore-corpus-") as corpus:
        for number, seed in enumerate(seeds(chosen.target)):
            (Path(corpus) / f"seed{number}").write_bytes(seed)
        options = [
            f"-max_total_time={chosen.seconds}",
            f"-max_len={_LONGEST_INPUT}",
            f"-timeout={_SECONDS_PER_INPUT}",
            f"-rss_limit_mb={_MEMORY_MB}",
            f"-artifact_prefix={chosen.findings}/{chosen.target}-",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, corpus], TARGETS[chosen.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
