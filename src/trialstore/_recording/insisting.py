"""What must be done to its end, whatever happens to the caller who waits for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel

Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]


async def insist(
    function: Callable[[], Awaitable[None]], spawn: Spawn, give_up: Callable[[], None]
) -> None:
    """Run `function` to its end, in a task of its own.

    A shield keeps anyio's cancellation out, but asyncio's own (``asyncio.timeout``, a second
    Ctrl-C) passes it. A caller that is cancelled meanwhile gets its cancellation afterwards.

    Parameters
    ----------
    function : callable
        What is to be done; what it raises, the caller gets.
    spawn : callable
        Starts a task that outlives the caller.
    give_up : callable
        Called instead where the whole loop is being torn down: nobody will run `function` then.
    """
    done = anyio.Event()
    failure: BaseException | None = None
    has_begun = False

    async def body() -> None:
        nonlocal failure, has_begun
        has_begun = True
        try:
            with anyio.CancelScope(shield=True):
                await function()
        except Exception as error:  # noqa: BLE001 - raised again in the caller
            failure = error
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            # Cancelled in spite of the shield: the whole loop is being torn down.
            failure = error
            give_up()
        finally:
            done.set()

    spawn(body)
    interruption: BaseException | None = None
    with anyio.CancelScope(shield=True):
        while not done.is_set():
            try:
                if interruption is None or has_begun:
                    await done.wait()
                else:
                    await anyio.lowlevel.checkpoint()
                    if not has_begun:
                        # The task was cancelled before its first step, and will have none.
                        give_up()
                        break
            except (anyio.get_cancelled_exc_class(), KeyboardInterrupt) as error:
                interruption = error
    if failure is not None or interruption is not None:
        raise failure or interruption  # type: ignore[misc] # one of them is there
