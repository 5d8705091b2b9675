"""Checking what was read while the next is being read.

A checksum takes as long as reading from the page cache does, and neither holds the interpreter
lock: on two cores one hides behind the other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from trialstore._errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")


def checked_ahead(items: Iterable[T], check: Callable[[T], object]) -> Iterator[T]:
    """Yield items one by one, each after `check`, which runs in a thread beside the next reading.

    Guarantee: no item is yielded that `check` raised for, and all before one that cannot be read
    or fails its check are yielded, in order.

    Parameters
    ----------
    items : iterable
        Read when it is asked for the next; at most one is read ahead.
    check : callable
        Raises for an item that must not be yielded.

    Raises
    ------
    StorageError
        What `items` or `check` raised, when the turn of that item comes.
    """
    failure: StorageError | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="trialstore check") as pool:
        waiting: tuple[T, Future[object]] | None = None
        coming = iter(items)
        while True:
            try:
                item = next(coming)
            except StopIteration:
                break
            except StorageError as error:
                failure = error
                break
            begun = (item, pool.submit(check, item))
            if waiting is not None:
                waiting[1].result()
                yield waiting[0]
            waiting = begun
        if waiting is not None:
            waiting[1].result()
            yield waiting[0]
    if failure is not None:
        raise failure
