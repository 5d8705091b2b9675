"""The page about the format is right, and enough: a reader written from it alone reads it all."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import zlib
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import anyio
import h5py
import numpy as np
import pytest

from tests.helpers import reader_of
from tests.journals import Recording
from tests.page_reader import read_journal
from trialstore import ArrayInfo, Storage
from trialstore._ondisk import (
    chunks,
    clocks,
    disk,
    entries,
    journal,
    layout,
    losses,
    manifest,
    numbers,
    replay,
    table,
    values,
    witness,
)
from trialstore._ondisk.disk import Disk
from trialstore._ondisk.entries import CleanEnd, LossNote, Opening, PoisonNote, SyncMark
from trialstore._ondisk.journal import FrameType
from trialstore._ondisk.losses import Loss
from trialstore._ondisk.manifest import Manifest, StoredArray
from trialstore._upkeep.discovery import DAMAGED_MANIFEST
from trialstore._upkeep.proof import RECOVERING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from trialstore import TaskReader, TaskWriter

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "format.md").read_text("utf-8")

#: One attribute of every kind that the page's reader knows.
ATTRS: dict[str, Any] = {
    "missing": None,
    "yes": True,
    "count": -17,
    "large": -(2**3000),
    "rt": 0.1,
    "not a number": float("inf"),
    "z": 1 - 2.5j,
    "code": "007",
    "empty": "",
    'Größe, "m"': "line\nbreak",
    "raw": b"\x00\xff",
    "day": date(2024, 5, 1),
    "at": datetime(2024, 5, 1, 3, 4, 5, 6, tzinfo=UTC),
    "lasted": timedelta(days=-1, microseconds=1),
    "small": np.int8(-3),
    "wide": np.uint64(2**64 - 1),
    "single": np.float32(0.1),
    "nested": [1, {"a": None, "b": (1, 2.5)}, {"$odd": [b"x"]}],
    "pair": (1, "two"),
}
STRUCTURE = np.dtype([("x", "<f8"), ("flags", "u1", (2,)), ("deep", [("y", ">i2")])], align=False)
PADDED = np.dtype([("a", "u1"), ("b", "<f8")], align=True)


class FailsOnce(Disk):
    """A disk with one bad moment: the n-th sync of a file fails."""

    def __init__(self, nth: int) -> None:
        self.remaining = nth

    def sync(self, fd: int) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(fd)


def record(root: Path, *experiments: Callable[[TaskWriter], Awaitable[None]]) -> TaskReader:
    """Run each experiment in a session of its own on one task, and leave the journal in place."""

    async def run() -> None:
        for number, experiment in enumerate(experiments):
            async with Storage(root, keep_journal=True) as storage:
                storage.subject_id = "p0"
                declared = {"emg": ArrayInfo(rate=2000.0, unit="mV", dims=("channel", "time"))}
                opening = (
                    storage.resume_task("reach")
                    if number
                    else storage.create_task("reach", arrays=declared)
                )
                async with opening as task:
                    await experiment(task)

    anyio.run(run)
    return reader_of(root)


def compare(reader: TaskReader, folders: Sequence[Path], first: int = 0) -> None:
    """Hold the page's reader against trialstore's own, trial by trial."""
    found = read_journal(*folders)
    assert list(found) == list(range(first, len(reader.trials)))
    times = reader.timing
    for number, trial in found.items():
        for name in reader.array_names:
            if name in trial.arrays:
                expected = reader.array(name, trial=number)
                assert trial.arrays[name].dtype == expected.dtype
                assert trial.arrays[name].shape == expected.shape
                assert trial.arrays[name].tobytes() == expected.tobytes()
        row = times.loc[number]
        assert trial.times[:2] == (row["unix_ns"], row["monotonic_ns"])


# --- the page is enough -----------------------------------------------------------------------


def test_the_reader_is_as_short_as_promised_and_knows_nothing_of_ours() -> None:
    """At most 150 lines, and none of them imports trialstore."""
    text = (Path(__file__).parent / "page_reader.py").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert "trialstore" not in text.replace("docs/reference", "")


@pytest.mark.slow
def test_it_reads_what_was_recorded(tmp_path: Path) -> None:
    """Kinds, dtypes, shapes, chunks: everything is what the experiment handed over."""
    rng = np.random.default_rng(1)
    streamed = [rng.standard_normal((2, n)) for n in (3, 1, 3, 3, 0, 7)]
    written: dict[str, NDArray[Any]] = {
        "scalar": np.array(2.5),
        "bools": np.array([[True], [False]]),
        "big": np.arange(5, dtype=">i2"),
        "text": np.array([b"ab", b"c"]),
        "complex": np.array([1 + 2j], "c8"),
        "dates": np.array(["2024-05-01", "NaT"], "M8[ns]"),
        "structure": np.array([(1.5, (1, 2), (3,))], STRUCTURE),
        "padded": np.zeros(3, PADDED),
        "nothing": np.zeros((0, 4), "f4"),
    }

    class Trial:
        attrs = ATTRS
        arrays = written

    async def experiment(task: TaskWriter) -> None:
        await task.write({"target": 1})
        for chunk in streamed:
            await task.append("emg", chunk)
        await task.append("key", np.array([1, 2], "u1"))
        await task.append("key", np.array([3], "u1"))
        await task.write(ATTRS)
        await task.write(Trial)

    reader = record(tmp_path / "data", experiment)
    folder = tmp_path / "data" / "p0" / "reach" / "journal"
    found = read_journal(folder)
    assert found[0].attrs == {"target": 1}
    for number in (1, 2):
        assert found[number].attrs == ATTRS
        assert [type(v) for v in found[number].attrs.values()] == [type(v) for v in ATTRS.values()]
    np.testing.assert_array_equal(found[1].arrays["emg"], np.hstack(streamed))
    np.testing.assert_array_equal(found[1].arrays["key"], [1, 2, 3])
    assert found[2].arrays.keys() == written.keys()
    for name, array in written.items():
        assert found[2].arrays[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[2].arrays[name], array)
    compare(reader, [folder])


@pytest.mark.parametrize("stack_axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 2)], ids=str)
def test_it_joins_chunks_by_the_pages_rule(
    tmp_path: Path, stack_axis: int, shape: tuple[int, ...]
) -> None:
    """One, two or three chunks of any shape become what NumPy's stack functions make of them."""
    stack: Callable[[Any], Any] = (np.vstack, np.hstack, np.dstack)[stack_axis]
    pieces = [np.full(shape, value) for value in (1.5, 2.5, 3.5)]
    recording = Recording(tmp_path / "journal")
    for count in (1, 2, 3):
        for piece in pieces[:count]:
            recording.append("x", piece, stack_axis=stack_axis)
        recording.trial()
    recording.commit()
    recording.close()
    found = [trial.arrays["x"] for trial in read_journal(tmp_path / "journal").values()]
    assert found[0].shape == shape
    for count, array in enumerate(found[1:], 2):
        np.testing.assert_array_equal(array, stack(pieces[:count]))
        assert array.shape == stack(pieces[:count]).shape


@pytest.mark.slow
@pytest.mark.parametrize("nth", [4, 5, 6])
def test_it_reads_a_journal_that_failed_over(tmp_path: Path, nth: int) -> None:
    """Trials that stand in two segments are counted once, and none is missing."""

    async def experiment(task: TaskWriter) -> None:
        for number in range(4):
            await task.append("emg", np.full((2, 3), number))
            receipt = await task.write({"target": number})
            await receipt.durable()

    with disk.use(FailsOnce(nth)):
        reader = record(tmp_path / "data", experiment)
    folder = tmp_path / "data" / "p0" / "reach" / "journal"
    assert len(list(folder.glob("*.segment"))) == 2
    compare(reader, [folder])
    assert [trial.attrs["target"] for trial in read_journal(folder).values()] == [0, 1, 2, 3]


@pytest.mark.slow
def test_it_reads_the_later_sessions_of_a_task(tmp_path: Path) -> None:
    """After a resume the journal has the new trials, numbered on behind the published ones."""

    def session(first: int) -> Callable[[TaskWriter], Awaitable[None]]:
        async def experiment(task: TaskWriter) -> None:
            for number in range(first, first + 2):
                await task.append("emg", np.full((2, number + 1), number))
                await task.write({"target": number})

        return experiment

    reader = record(tmp_path / "data", session(0), session(2))
    folder = tmp_path / "data" / "p0" / "reach" / "journal"
    assert (folder / "base" / "manifest.json").exists()
    compare(reader, [folder], first=2)


def test_it_keeps_to_what_the_page_says_of_takeovers_and_damage(tmp_path: Path) -> None:
    """Superseded trials are left out; a damaged header is read by its witness; a hurt row goes."""
    folder = tmp_path / "journal"
    late = Recording(folder)
    late.append("x", np.arange(3.0))
    late.trial(by="the first")
    late.commit()
    heir = Recording(folder, after=late.journal.durable_seq, trials=1)
    for piece in (np.zeros(2), np.ones(2)):
        heir.append("x", piece)
    heir.trial(by="the second")
    heir.commit()
    late.trial(by="the first")
    late.commit()
    for recording in (late, heir):
        recording.close()
    found = read_journal(folder)
    assert [trial.attrs["by"] for trial in found.values()] == ["the first", "the second"]
    np.testing.assert_array_equal(found[1].arrays["x"], [0, 0, 1, 1])
    for name, offset in (("000001.segment", slice(0, 64)), ("000002.segment", slice(-150, -140))):
        data = bytearray((folder / name).read_bytes())
        data[offset] = bytes(len(data[offset]))
        (folder / name).write_bytes(data)
    found = read_journal(folder)
    assert list(found) == [0]
    np.testing.assert_array_equal(found[0].arrays["x"], np.arange(3.0))


@pytest.mark.slow
def test_published_files_are_as_the_page_says(tmp_path: Path) -> None:
    """Without trialstore: names, shapes, checksums, timing, attributes, the manifest's own CRC."""

    async def experiment(task: TaskWriter) -> None:
        for number in range(2):
            await task.append("emg", np.full((2, 70_000), number + 0.5))
            await task.append("emg", np.full((2, 10), number + 0.25))
            await task.write({"target": number, "note": "a, b" if number else None})

    record(tmp_path / "data", experiment)
    folder = tmp_path / "data" / "p0" / "reach"
    data = (folder / "manifest.json").read_bytes()
    body, _, rest = data.partition(b',\n  "checksum"')
    assert f"crc32:{zlib.crc32(body):08x}" in rest.decode()
    described = manifest.decode(data, folder)
    stored = members_of("manifest.json", "place")
    with h5py.File(folder / "emg.hdf5") as file:
        assert set(file) == {"0", "1", "timing"}
        assert dict(file.attrs)["rate"] == 2000.0
        for number in range(2):
            listed = described.arrays["emg"].to_json()["trials"][number]  # type: ignore[index]
            entry = dict(zip(stored, listed, strict=True))
            array = file[str(entry["trial"])][()]
            assert list(array.shape) == entry["shape"] == [2, 70_010]
            step, axis = entry["block"], entry["axis"]
            parts = [
                array.take(range(at, min(at + step, array.shape[axis])), axis)
                for at in range(0, array.shape[axis], step)
            ]
            assert [zlib.crc32(part.tobytes()) for part in parts] == entry["blocks"]
            assert file["timing"][str(number)][:, 0].tolist() == [70_000, 10]
    assert (folder / "trials.csv").read_bytes() == b'target,note\n0,\n1,"a, b"\n'
    for name, said in described.files.items():
        assert (folder / name).stat().st_size == said["size"]
        if not name.endswith(".hdf5"):
            assert zlib.crc32((folder / name).read_bytes()) == said["crc32"]


# --- the page is right ------------------------------------------------------------------------


def section(heading: str) -> str:
    """Return the text below one heading, up to the next of any level."""
    (found,) = re.findall(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
    return str(found)


def tables_in(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield each table: the names of its columns, and its rows without the marks around code."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        lines = [
            [cell.strip() for cell in line[1:-2].split(" | ")] for line in block.splitlines(True)
        ]
        yield lines[0], [[cell.strip("` ") for cell in line] for line in lines[2:]]


def rows_of(heading: str, column: str) -> list[list[str]]:
    """Return the rows of the table below a heading whose first column has this name."""
    (rows,) = (rows for names, rows in tables_in(section(heading)) if names[0] == column)
    return rows


def members_of(heading: str, column: str = "member") -> list[str]:
    """Return the first cells of a table."""
    return [row[0] for row in rows_of(heading, column)]


def hexadecimal(data: bytes) -> str:
    """Write bytes as the page does."""
    return data.hex(" ")


def layout_of(form: struct.Struct, *more: str) -> list[tuple[int, int]]:
    """Return offset and width of each field of a packed structure."""
    found, at = [], 0
    for code in [*re.findall(r"\d*[a-zA-Z]", form.format), *more]:
        width = struct.calcsize(f"<{code}")
        found.append((at, width))
        at += width
    return found


def places_in(heading: str) -> list[tuple[int, int]]:
    """Return offset and width of each field of the page's table."""
    return [(int(row[0]), int(row[1])) for row in rows_of(heading, "offset")]


def test_the_constants_are_the_codes() -> None:
    """Magics and sizes of the page are those that the code writes."""
    assert dict(rows_of("Constants", "constant")) == {
        "version": str(journal.VERSION),
        "alignment": str(journal.ALIGNMENT),
        "segment magic": hexadecimal(journal.HEADER_MAGIC),
        "frame magic": hexadecimal(journal.FRAME_MAGIC),
        "witness magic": hexadecimal(witness._MAGIC),
        "header copy": str(journal.HEADER_COPY),
        "segment header": str(journal.HEADER_SIZE),
        "frame header": str(journal.FRAME_SIZE),
        "witness slot": str(witness.SLOT_SIZE),
        "block bytes": str(chunks.BLOCK_BYTES),
        "longest name": str(layout.MAX_NAME_BYTES),
        "most axes": str(chunks.MAX_AXES),
        "highest number": str(numbers.MOST),
        "smallest trial frame": str(replay._TRIAL_FRAME),
        "believed trials": str(replay._BELIEVED),
    }
    assert journal.VERSION == manifest.VERSION
    assert f"Version {journal.VERSION}." in PAGE


def test_the_fields_are_where_the_page_says() -> None:
    """Offset and width of every field are those that the code packs."""
    assert places_in("Segment header") == layout_of(journal._HEADER, "I")
    assert places_in("Frame") == layout_of(journal._FRAME, "I")
    assert places_in("Witness") == layout_of(witness._SLOT, "I")
    names = [row[2] for row in rows_of("Witness", "offset")]
    assert names == ["magic", *(field.name for field in fields(witness.Witness)), "crc"]
    for heading, magic in [
        ("Segment header", journal.HEADER_MAGIC),
        ("Frame", journal.FRAME_MAGIC),
        ("Witness", witness._MAGIC),
    ]:
        assert hexadecimal(magic) in rows_of(heading, "offset")[0][3]


def test_the_frame_types_are_the_codes() -> None:
    """Every type of the code is on the page, with its number, and no other."""
    rows = rows_of("Frame types", "type")
    assert {int(number): name for number, name, _ in rows} == {
        kind.value: kind.name.lower().replace("_", " ") for kind in FrameType
    }
    assert [name for _, name, samples in rows if samples == "yes"] == ["chunks"]


def test_the_descriptions_have_the_members_of_the_page() -> None:
    """What the code writes into each type of frame is what the page lists, in its order."""
    form, _ = entries.layout_of((2, 3), np.dtype("f8"), 1)
    commit = entries.TrialCommit(0, (), {}, 1, 2, None)
    for record in (
        Opening("00" * 16, 0, 0, {}),
        entries.ChunkRun("emg", 0, 0, form, ()),
        commit,
        LossNote(()),
        PoisonNote("000001.segment", "EIO"),
        CleanEnd(0, "complete", None, 1, 2, {}),
    ):
        kind, meta, _ = entries.encode(record)
        assert list(json.loads(meta)) == members_of(kind.name.lower().replace("_", " "))
    assert entries.encode(SyncMark()).meta == b"{}"


def test_the_losses_are_the_codes() -> None:
    """Classes and members of a loss."""
    (classes, members) = tables_in(section("Loss"))
    assert [row[0] for row in classes[1]] == list(get_args(losses.LossKind))
    assert [row[0] for row in members[1]] == [field.name for field in fields(Loss)]


def test_the_kinds_are_the_codes() -> None:
    """Every kind that the code can read is on the page, and no other."""
    families = {"time", "datetime", "datetime64", "timedelta64", "Timestamp", "Timedelta"}
    listed = members_of("Kinds", "kind")
    assert set(listed) == set(values._DECODERS) | families
    assert len(listed) == len(set(listed))
    patterns = clocks._CLOCK, clocks._UNITS, clocks._PANDAS
    for example in re.findall(
        r"`((?:datetime|timedelta|Timestamp|time)\w*\[.*?\](?: fold=1)?)`", PAGE
    ):
        assert any(pattern.fullmatch(example) for pattern in patterns), example


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(("bool", "True"), ("int", "-0x1f"), ("float", "-inf"), ("complex", "2j")),
        *(("complex", "(1+2j)"), ("date", "2024-05-01"), ("time", "03:04:05.000006+01:00")),
        *(
            ("datetime", "2024-05-01T03:04:05.000006+02:00"),
            ("timedelta", "-1 days +23:59:59.500000"),
        ),
        *(("complex64", "(1.0+2.0j)"), ("datetime64[ns]", "@17"), ("timedelta64[25us]", "NaT")),
        *(("json", '{"$dict": [["$a", 1]]}'), ("tuple", '[{"$tuple": [NaN, -Infinity]}]')),
    ],
)
def test_the_texts_of_the_page_are_read(kind: str, text: str) -> None:
    """What stands on the page as an example is what the code reads."""
    values.decode_value(kind, text)


def test_the_files_are_the_codes() -> None:
    """Names of files, columns of timing.csv and members of the manifest."""
    assert members_of("Folder of a task", "path") == [
        layout.TRIALS,
        layout.TIMING,
        f"NAME{layout.ARRAY_SUFFIX}",
        f"NAME{layout.PICKLE_SUFFIX}",
        layout.MANIFEST,
        f"{DAMAGED_MANIFEST}CRC",
        f"{layout.INTERRUPTED}/",
        f"{layout.JOURNAL}/",
        f"{layout.JOURNAL}/{layout.segment_name(1)}",
        f"{layout.JOURNAL}/{layout.witness_path(Path(layout.segment_name(1)))}",
        f"{layout.JOURNAL}/{layout.LOCK}",
        f"{layout.JOURNAL}/{layout.PUBLISH_LOCK}",
        f"{layout.JOURNAL}/{layout.BASE}",
        f"{layout.JOURNAL}/{layout.ANSWER}",
        f"{layout.JOURNAL}/{layout.RESERVE}",
        f"{layout.JOURNAL}/{RECOVERING}",
    ]
    assert members_of("timing.csv", "column") == list(table.Timing._fields)
    own = [field.name for field in fields(Manifest)]
    assert members_of("manifest.json") == ["format", "version", *own, "checksum"]
    assert members_of("manifest.json", "place") == [field.name for field in fields(StoredArray)]


def test_links_within_the_page_lead_somewhere() -> None:
    """Every anchor is that of a heading."""
    slugs: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        slugs.append(f"{slug}-{slugs.count(slug)}" if slug in slugs else slug)
    assert set(re.findall(r"\]\(#(.*?)\)", PAGE)) <= set(slugs)


def test_every_rule_that_surprises_has_its_reason() -> None:
    """The page tells why, a dozen times and more."""
    assert PAGE.count("> Why") >= 12
