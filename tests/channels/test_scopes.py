"""What leaves a background nursery, and what does not stay behind."""

from __future__ import annotations

import weakref

import pytest
import trio

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.simulation.collector import no_collector


async def fail(error: Exception) -> None:
    raise error


async def test_body_ends_its_tasks() -> None:
    with trio.fail_after(5):
        async with open_background_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)


async def test_error_of_the_body_leaves_as_itself() -> None:
    error = ValueError("of the body")
    with pytest.raises(ValueError, match="of the body") as raised:
        async with open_background_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error
    assert raised.value is error


async def test_error_of_a_task_cancels_the_body_and_leaves_as_itself() -> None:
    error = ValueError("of a task")
    with pytest.raises(ValueError, match="of a task") as raised:
        async with open_background_nursery() as nursery:
            nursery.start_soon(fail, error)
            await trio.sleep_forever()
    assert raised.value is error


async def test_two_errors_leave_as_a_group() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with open_background_nursery() as nursery:
            nursery.start_soon(fail, ValueError())
            nursery.start_soon(fail, KeyError())
            await trio.sleep_forever()
    assert {type(error) for error in raised.value.exceptions} == {ValueError, KeyError}


async def test_what_a_cancelled_body_had_is_freed_at_once() -> None:
    class Thing:
        pass

    async def serve(thing: Thing) -> None:
        with trio.CancelScope() as scope:
            async with open_background_nursery():
                scope.cancel()
                await trio.sleep_forever()

    with no_collector():
        thing = Thing()
        reference = weakref.ref(thing)
        await serve(thing)
        del thing
        assert reference() is None
