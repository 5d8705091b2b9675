"""Reading ahead: everything is checked before it is shown, and in order."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from trialstore import DamagedData, FormatError
from trialstore._reading.ahead import checked_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_everything_comes_in_order_and_checked_in_another_thread() -> None:
    """Each item is yielded once, in order, after its check."""
    checked: list[tuple[int, str]] = []

    def check(item: int) -> None:
        checked.append((item, threading.current_thread().name))

    for item in checked_ahead(range(50), check):
        assert item in [number for number, _ in checked]
    assert [number for number, _ in checked] == list(range(50))
    assert threading.current_thread().name not in {name for _, name in checked}
    assert list(checked_ahead([], check)) == []


@pytest.mark.parametrize("bad", [0, 3, 9])
def test_what_fails_its_check_comes_in_its_turn(bad: int) -> None:
    """Everything before a damaged item is yielded, the item itself and what follows are not."""

    def check(item: int) -> None:
        if item == bad:
            raise DamagedData(f"item {item}")

    found: list[int] = []
    with pytest.raises(DamagedData, match=f"item {bad}"):
        found.extend(checked_ahead(range(10), check))
    assert found == list(range(bad))


@pytest.mark.parametrize("bad", [0, 3])
def test_what_cannot_be_read_comes_in_its_turn(bad: int) -> None:
    """An item is yielded although the next one, read ahead, could not be read."""

    def items() -> Iterator[int]:
        yield from range(bad)
        raise FormatError("no more")

    found: list[int] = []
    with pytest.raises(FormatError, match="no more"):
        found.extend(checked_ahead(items(), lambda _: None))
    assert found == list(range(bad))


def test_one_item_at_most_is_read_ahead_and_leaving_early_leaves_nothing() -> None:
    """Whoever stops after the first has had two read, and no thread stays behind."""
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            read.append(item)
            yield item

    before = threading.active_count()
    found = checked_ahead(items(), lambda _: None)
    assert next(found) == 0
    assert read == [0, 1]
    found.close()  # type: ignore[attr-defined] # it is a generator
    assert threading.active_count() == before
