"""Ways to store trials, one module each, behind one protocol.

Every peer runs from its own package. What only its documentation or its users' habit prescribes
(how the loop and the library come together) is said in ``PATTERN`` and told in the report.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from tests.benchmarks.frame import versions
from tests.campaign.frame import CannotRun

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.benchmarks.frame import Effort

    #: Attributes and array of one trial, as they were read back.
    Trials = Iterator[tuple[dict[str, Any], NDArray[Any] | None]]


class Peer(Protocol):
    """One recording of one task, made on an asyncio loop.

    Chunks belong to the open trial, are stacked along their second axis, and lie in a buffer that
    the caller uses again.
    """

    PATTERN: ClassVar[str]

    def __init__(self, folder: Path) -> None: ...

    async def open(self) -> None:
        """Be ready to take trials."""
        ...

    def append_nowait(self, chunk: NDArray[Any]) -> None:
        """Take a chunk of the open trial."""
        ...

    async def append(self, chunk: NDArray[Any]) -> None:
        """Take a chunk, waiting while more is pending than the peer, or its user, can hold."""
        ...

    async def write(self, attrs: dict[str, Any]) -> None:
        """Take the attributes, which ends the open trial."""
        ...

    async def aclose(self) -> None:
        """Return when everything is in files, as safe as the peer makes them."""
        ...

    @staticmethod
    def read(folder: Path) -> Trials:
        """Yield what was stored, with the peer's own means."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a peer is, and what it needs.

    Parameters
    ----------
    label : str
        For tables and plots.
    module, name : str
        The class.
    packages : tuple of (str, str)
        Module to import and distribution to install.
    """

    label: str
    module: str
    name: str
    packages: tuple[tuple[str, str], ...] = ()

    @property
    def missing(self) -> str | None:
        """Why the peer cannot run here, or None if it can."""
        lacking = [
            distribution
            for module, distribution in self.packages
            if importlib.util.find_spec(module) is None
        ]
        return f"not installed: {', '.join(lacking)}" if lacking else None

    @property
    def versions(self) -> dict[str, str]:
        """Versions of its packages."""
        return versions([distribution for _, distribution in self.packages])


PEERS: Final = {
    "trialstore": Entry("trialstore", "ours", "Ours"),
    "h5py": Entry("h5py + csv in a thread", "by_hand", "Hdf5Csv", (("h5py", "h5py"),)),
    "h5py-reopened": Entry(
        "h5py + csv in a thread, reopened", "by_hand", "Hdf5Reopened", (("h5py", "h5py"),)
    ),
    "axopy": Entry("AxoPy", "axopy", "AxoPy", (("axopy", "axopy"),)),
    "tables": Entry("PyTables in a thread", "pytables", "PyTables", (("tables", "tables"),)),
    "qcodes": Entry("QCoDeS write_in_background", "qcodes", "Qcodes", (("qcodes", "qcodes"),)),
    "zarr": Entry("zarr-python", "zarr", "Zarr", (("zarr", "zarr"),)),
    "mcap": Entry("MCAP in a thread", "mcap", "Mcap", (("mcap", "mcap"),)),
    "raw": Entry("bare thread, writev + fdatasync", "raw", "Raw"),
    "sqlite": Entry("SQLite WAL in a thread", "by_hand", "SqliteWal"),
}


def load(name: str) -> type[Peer]:
    """Return a peer's class.

    Raises
    ------
    CannotRun
        A package of it is not installed.
    """
    entry = PEERS[name]
    if entry.missing is not None:
        raise CannotRun(f"{entry.label}: {entry.missing}")
    module = importlib.import_module(f"tests.benchmarks.peers.{entry.module}")
    peer: type[Peer] = getattr(module, entry.name)
    return peer


def available() -> list[str]:
    """Names of the peers that can run here, ourselves included."""
    return [name for name, entry in PEERS.items() if entry.missing is None]


def chosen(effort: Effort) -> list[str]:
    """Return the names of those that a row shall measure: all, or the two that are asked for most.

    Ourselves are the first of them.
    """
    names = available()
    few = effort.of(names, ["trialstore", "h5py", "axopy"], ["trialstore", "h5py"])
    return [name for name in names if name in few]
