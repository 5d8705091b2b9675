"""Drive one fuzz target with Atheris: ``python -m tests.fuzz TARGET --seconds 120``.

Needs ``atheris`` (CPython 3.11 to 3.13 on Linux and macOS), which `nox -s fuzz` installs. An input
that ends a run is kept in the folder given with ``--findings``; give it back with ``--input FILE``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

#: Loaded by Atheris itself, and so not yet instrumented; its opcodes are what pickles are made of.
sys.modules.pop("pickle", None)
with atheris.instrument_imports(include=["trialstore", "tests.fuzz", "pickle"]):
    from tests import test_fuzz
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import TARGETS, memory_folder

#: Hypothesis builds the inputs of these out of what Atheris gives: right JSON, wrong values.
STRUCTURED = {
    "frames": test_fuzz.test_frames_that_fit_their_checksums_are_still_not_believed,
    "members": test_fuzz.test_a_manifest_that_fits_its_checksum_is_still_not_believed,
}

if TYPE_CHECKING:
    from collections.abc import Callable

#: A megabyte of any input must do with this much, and an input of a few kilobytes with this time.
_MEMORY_MB = 2048
_SECONDS_PER_INPUT = 10
_LONGEST_INPUT = 1 << 16
#: Bytes that Hypothesis may need for all its choices.
_CHOICES = 2000


def _target(name: str) -> Callable[[bytes], object]:
    if name in TARGETS:
        return TARGETS[name]
    fuzz_one: Callable[[bytes], object] = STRUCTURED[name].hypothesis.fuzz_one_input
    return fuzz_one


def _seeds(name: str) -> list[bytes]:
    if name in TARGETS:
        return seeds(name)
    return [random.Random(number).randbytes(_CHOICES) for number in range(100)]


def main() -> None:
    """Fuzz until the time is over; exit 77 (libFuzzer's code) at the first finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, *STRUCTURED])
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--input", type=Path, help="run one input and end")
    chosen = parser.parse_args()
    target = _target(chosen.target)
    if chosen.input is not None:
        target(chosen.input.read_bytes())
        return
    chosen.findings.mkdir(parents=True, exist_ok=True)
    # libFuzzer ends its process without cleaning up, so that is left to the parent.
    with tempfile.TemporaryDirectory(prefix="trialstore-fuzz-", dir=memory_folder()) as folder:
        child = multiprocessing.get_context("fork").Process(target=_fuzz, args=(chosen, folder))
        child.start()
        child.join()
    sys.exit(child.exitcode)


def _fuzz(chosen: argparse.Namespace, folder: str) -> None:
    tempfile.tempdir = folder
    corpus = Path(folder) / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(_seeds(chosen.target)):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [
        f"-max_total_time={chosen.seconds}",
        f"-max_len={_LONGEST_INPUT}",
        "-len_control=0",
        f"-timeout={_SECONDS_PER_INPUT}",
        f"-rss_limit_mb={_MEMORY_MB}",
        f"-artifact_prefix={chosen.findings}/{chosen.target}-",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], _target(chosen.target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
