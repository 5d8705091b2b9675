"""The manifest: whole and believed, or refused by name; nothing in between."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialstore import DamagedData, FormatError, Loss
from trialstore._ondisk import manifest
from trialstore._ondisk.manifest import ArrayRecord, Manifest, StoredArray, decode

PATH = Path("data/p0/reach/manifest.json")

FULL = Manifest(
    "complete",
    "p0",
    "Grüße",
    start={"utc": "2024-05-01T12:00:00.000+00:00", "unix_ns": 1, "monotonic_ns": 2},
    end={"utc": "2024-05-01T12:30:00.000+00:00", "unix_ns": 3, "monotonic_ns": 4},
    trials=3,
    lost=[1],
    columns=[["target", [["int", 1], ["missing", 1], ["int", 1]]]],
    files={"trials.csv": {"size": 14, "crc32": 17}, "emg.hdf5": {"size": 4096, "crc32": 0}},
    arrays={
        "emg": ArrayRecord(
            {"rate": 2000.0, "unit": "mV", "channels": ["FCR"], "dims": None},
            1,
            {
                0: StoredArray(0, "<f8", (2, 7), 1, 4, (1, 2**32 - 1)),
                2: StoredArray(2, [["x", "<f8"], ["y", "<i4", [2]]], (), 0, 1, (5,)),
            },
        ),
        "key": ArrayRecord({}, 0),
    },
    losses=[Loss((1,), "1 trial", "damaged", "journal/000001.segment", (64, 128), "its CRC")],
    statistics={"batches": 4, "longest_hold": 0.002},
    environment={"host": "rig", "python": "3.11"},
    metadata={"experimenter": "A", "nested": {"list": [1, None, True, "\u2028"]}},
    traceback='Traceback:\n  File "x.py"\n',
    sessions=["00" * 16, "ff" * 16],
)


def sealed(values: object) -> bytes:
    """Return JSON of any members with the right checksum, as somebody who knows the rule can."""
    text = json.dumps(values, ensure_ascii=True)
    body = text.rstrip().removesuffix("}").encode()
    return body + f',\n  "checksum": "crc32:{zlib.crc32(body):08x}"\n}}\n'.encode()


def members_of(found: Manifest) -> dict[str, Any]:
    """Return the members of an encoded manifest, without the checksum."""
    values = json.loads(found.encode())
    del values["checksum"]
    return dict(values)


# --- whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [FULL, Manifest("recording", "p0", "reach")], ids=["full", "new"])
def test_a_manifest_comes_back_as_it_was_made(made: Manifest) -> None:
    """Every member, numbers exact, texts as they were."""
    assert decode(made.encode(), PATH) == made


def test_a_person_and_any_program_can_read_it() -> None:
    """It is plain JSON, one member a line, in UTF-8, with every member of the class."""
    data = FULL.encode()
    values = json.loads(data)
    assert (values["format"], values["version"]) == ("trialstore", 1)
    members = [field.name for field in fields(Manifest)]
    assert list(values) == ["format", "version", *members, "checksum"]
    assert len(data.splitlines()) == len(values) + 2
    assert "Grüße".encode() in data


def test_the_checksum_is_that_of_everything_before_it() -> None:
    """Anybody can check it with the CRC-32 of a standard tool."""
    data = FULL.encode()
    body, line = data[: data.index(b',\n  "checksum"')], data.splitlines()[-2]
    assert line == f'  "checksum": "crc32:{zlib.crc32(body):08x}"'.encode()


def test_a_traceback_that_is_not_unicode_does_not_stop_publication() -> None:
    """A file name in a traceback may be any bytes; the rest of the manifest is worth more."""
    made = Manifest("interrupted", "p0", "reach", traceback="File '\udcff.py'")
    assert decode(made.encode(), PATH).traceback == "File '?.py'"


def test_members_from_the_future_are_left_alone() -> None:
    """A later minor change may add members; the known ones are read all the same."""
    assert decode(sealed({**members_of(FULL), "mood": "good"}), PATH) == FULL


# --- damaged, cut, foreign --------------------------------------------------------------------


def test_cut_at_every_byte_it_is_refused() -> None:
    """No prefix is taken for a manifest (but for the one that lacks only the last line break)."""
    data = FULL.encode()
    for size in range(len(data) - 1):
        with pytest.raises((FormatError, DamagedData)):
            decode(data[:size], PATH)
    assert decode(data[:-1], PATH) == FULL


def test_every_changed_byte_is_noticed() -> None:
    """Wherever a byte is changed, the manifest is refused; it never says something else."""
    data = FULL.encode()
    for offset in range(len(data)):
        for change in (0x01, 0x20, 0x80):
            changed = bytearray(data)
            changed[offset] ^= change
            try:
                found = decode(bytes(changed), PATH)
            except (FormatError, DamagedData) as error:
                refusal = str(error)
            else:
                refusal = ""
                assert found == FULL, f"byte {offset}"
            assert not refusal or repr(str(PATH)) in refusal


def test_an_edited_manifest_is_told_from_a_foreign_file() -> None:
    """Edited by hand: DamagedData with advice. Not ours at all: FormatError."""
    edited = FULL.encode().replace(b'"p0"', b'"p1"')
    with pytest.raises(DamagedData, match="edited or damaged") as caught:
        decode(edited, PATH)
    assert caught.value.path == PATH
    for foreign in (b"{}", b"[]", b'{"format": "zarr", "version": 1}', b"\xff\xfe", b""):
        with pytest.raises(FormatError):
            decode(foreign, PATH)


def test_a_newer_version_is_refused_by_name() -> None:
    """A manifest of a later format is not guessed at, and the message says what to do."""
    with pytest.raises(FormatError, match=r"version 2.*update"):
        decode(sealed({**members_of(FULL), "version": 2}), PATH)


@pytest.mark.parametrize("member", [field.name for field in fields(Manifest)])
def test_every_member_is_needed(member: str) -> None:
    """A manifest from which a member is missing is refused, right checksum or not."""
    values = members_of(FULL)
    del values[member]
    with pytest.raises(FormatError):
        decode(sealed(values), PATH)


def test_an_array_cannot_be_called_a_path() -> None:
    """Names in a manifest become names of files; a stranger's lead nowhere else."""
    values = members_of(FULL)
    values["arrays"]["../../evil"] = values["arrays"]["emg"]
    with pytest.raises(FormatError):
        decode(sealed(values), PATH)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.sampled_from(["complete", "recording", "../../etc/passwd", "emg"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from([*members_of(FULL)]), JSON, max_size=3))
def test_any_members_give_a_manifest_or_an_error_of_ours(changes: dict[str, Any]) -> None:
    """Whatever a stranger puts into it under a right checksum, nothing but our errors comes out."""
    try:
        found = decode(sealed({**members_of(FULL), **changes}), PATH)
    except (FormatError, DamagedData):
        return
    assert found.status in {"recording", "complete", "interrupted"}
    assert found.trials >= 0
    assert not any("/" in name for name in found.arrays)
    assert decode(found.encode(), PATH) == found


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    """Bytes that are no manifest are FormatError and nothing else."""
    with pytest.raises(FormatError):
        decode(data, PATH)


@pytest.mark.parametrize("hostile", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000])
def test_what_would_exhaust_a_parser_is_refused(hostile: bytes) -> None:
    """Depth and digits without end are FormatError, too."""
    with pytest.raises(FormatError):
        decode(hostile, PATH)


# --- on disk ----------------------------------------------------------------------------------


def test_it_is_read_from_the_folder_of_a_task(tmp_path: Path) -> None:
    """No file is no manifest; a file is read; a link is not followed."""
    assert manifest.read(tmp_path) is None
    (tmp_path / "manifest.json").write_bytes(FULL.encode())
    assert manifest.read(tmp_path) == FULL
    (tmp_path / "manifest.json").rename(tmp_path / "elsewhere")
    (tmp_path / "manifest.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedData, match=re.escape(repr(str(tmp_path / "manifest.json")))):
        manifest.read(tmp_path)
