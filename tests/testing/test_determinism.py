"""The same seed gives the same history, byte for byte."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_overlay.channels.timeline import Timeline
from trio_overlay.errors import OutcomeError
from trio_overlay.nodes.tree import open_tree_node
from trio_overlay.signaling.server import SignalingServer
from trio_overlay.testing import determinism
from trio_overlay.testing.determinism import (
    NothingWillHappen,
    SteppedRun,
    TimeStandsStill,
    deterministic_trio,
    run_virtual,
)
from trio_overlay.testing.history import History
from trio_overlay.testing.network import VirtualNetwork

SERVER = "ws://server:5000"


async def tree_of(count: int, seed: int) -> History:
    """The history of *count* nodes that join at once, some of which leave or crash."""
    history = History()
    server = SignalingServer("secret", rng=random.Random(seed))
    async with VirtualNetwork(seed, history=history) as network, trio.open_nursery() as nursery:
        await nursery.start(server.run)
        network.listen("server:5000", server.handle_upgrade)
        scopes: dict[str, trio.CancelScope] = {}

        async def live(
            name: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            host = network.host(name)
            rng = random.Random(f"{seed} {name}")
            with trio.CancelScope() as scopes[name]:
                async with open_tree_node(SERVER, max_degree=2, network=host, rng=rng) as node:
                    if name == "root":
                        await node.become_root("secret")
                        task_status.started()
                    else:
                        with suppress(OutcomeError):  # its parent may crash meanwhile
                            await node.join()
                    await trio.sleep_forever()

        await nursery.start(live, "root")
        for number in range(count):
            nursery.start_soon(live, f"n{number}")
        await trio.sleep(0.4)
        scopes["n0"].cancel()
        network.crash("n1", noticed_after=2)
        scopes["n1"].cancel()
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    network.assert_quiet()
    return history


def history_in_a_process(seed: int, hash_seed: str) -> str:
    program = (
        "from tests.testing.test_determinism import tree_of; "
        "from trio_overlay.testing.determinism import run_virtual; "
        f"print(run_virtual(tree_of, 8, {seed}, seed={seed}))"
    )
    return run_in_a_process(program, hash_seed)


def run_in_a_process(program: str, hash_seed: str) -> str:
    """What *program* prints."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.rstrip("\n")


def test_the_same_seed_gives_the_same_history_twice_in_one_process() -> None:
    histories = [run_virtual(tree_of, 8, 5, seed=5) for _ in range(2)]
    assert str(histories[0]) == str(histories[1])
    assert histories[0].digest == histories[1].digest
    assert histories[0].count_lines > 100


def test_the_same_seed_gives_the_same_history_in_processes_with_other_hash_seeds() -> None:
    histories = [history_in_a_process(5, hash_seed) for hash_seed in ("1", "2")]
    assert histories[0] == histories[1]
    assert histories[0] == str(run_virtual(tree_of, 8, 5, seed=5))


TELL = """
import logging
from trio_overlay.cli.fuzz import OVERLAYS, load_machine
from trio_overlay.testing import History
from trio_overlay.testing.fuzz import fuzz

logging.disable()
for overlay in OVERLAYS:
    base = load_machine(overlay)

    class Machine(base):
        @staticmethod
        def open_world(settings):
            return base.open_world(settings, history=History())

        def teardown(self):
            super().teardown()
            history = self.world.network.history
            print(overlay, self.story, history.count_lines, history.digest)

    assert fuzz(Machine, seed=4, max_examples=4, max_steps=12).failure is None
"""


def test_stories_of_every_overlay_have_the_same_history_in_every_process() -> None:
    told = {run_in_a_process(TELL, hash_seed) for hash_seed in ("1", "2")}
    assert len(told) == 1
    assert len(set(told.pop().splitlines())) > 100


def test_different_seeds_give_different_histories() -> None:
    assert len({run_virtual(tree_of, 4, seed, seed=seed).digest for seed in range(4)}) == 4


async def order_of_ten() -> list[int]:
    order: list[int] = []

    async def note(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(note, number)
    return order


def test_trio_still_has_the_switch_for_scheduling_and_obeys_it() -> None:
    orders = [run_virtual(order_of_ten, seed=seed) for seed in (1, 1, 2, 2)]
    assert orders[0] == orders[1]
    assert orders[2] == orders[3]
    assert orders[0] != orders[2]


def test_the_scheduler_is_left_as_it_was() -> None:
    from trio._core import _run

    former = (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate())
    with deterministic_trio(3):
        trio.run(order_of_ten)
    assert (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()) == former


def test_a_virtual_run_jumps_over_a_year_at_once() -> None:
    async def wait() -> float:
        await trio.sleep(365 * 86400)
        return trio.current_time()

    assert run_virtual(wait) == 365 * 86400


class Counter:
    def __init__(self) -> None:
        self.ticks = 0
        self.is_left = False

    async def tick(self) -> None:
        while True:
            await trio.sleep(1)
            self.ticks += 1


@asynccontextmanager
async def open_counter() -> AsyncIterator[Counter]:
    counter = Counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counter.tick)
        yield counter
        nursery.cancel_scope.cancel()
    counter.is_left = True


async def give(counter: Counter) -> Counter:
    return counter


def test_a_stepped_run_goes_on_only_while_called() -> None:
    with SteppedRun(open_counter) as run:
        counter = run.call(give)
        assert counter.ticks == 0
        run.advance(2.5)
        assert counter.ticks == 2
        run.advance(1000)
        assert counter.ticks == 1002
        assert not counter.is_left
    assert counter.is_left


def test_a_stepped_run_lets_garbage_wait_and_leaves_the_collector_as_it_was() -> None:
    former = gc.get_threshold()
    try:
        for threshold, during in [(700, 50_000), (90_000, 90_000), (0, 0)]:  # 0: it is off
            gc.set_threshold(threshold, 11, 12)
            with SteppedRun(open_counter):
                assert gc.get_threshold() == (during, 11, 12)
            assert gc.get_threshold() == (threshold, 11, 12)
    finally:
        gc.set_threshold(*former)


def test_a_stepped_run_raises_what_a_command_raises_and_goes_on() -> None:
    async def fail(_: Counter) -> None:
        raise KeyError("of the command")

    with SteppedRun(open_counter) as run:
        with pytest.raises(KeyError, match="of the command"):
            run.call(fail)
        run.advance(3)
        assert run.call(give).ticks == 3


def test_a_stepped_run_ends_with_what_a_task_of_the_world_raises() -> None:
    async def break_down() -> None:
        await trio.sleep(5)
        raise KeyError("of a task")

    @asynccontextmanager
    async def open_world() -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_down)
            yield

    run = SteppedRun(open_world)
    run.start()
    run.advance(4)
    with pytest.raises(ExceptionGroup) as caught:
        run.advance(4)
    assert caught.group_contains(KeyError, match="of a task")
    with pytest.raises(RuntimeError, match="is over"):
        run.advance(1)
    run.close()


def test_a_stepped_run_notices_a_deadlock_and_can_still_be_closed() -> None:
    is_left = False

    @asynccontextmanager
    async def open_world() -> AsyncIterator[None]:
        nonlocal is_left
        yield
        is_left = True

    async def wait_for_ever(_: None) -> None:
        await trio.Event().wait()

    with SteppedRun(open_world) as run:
        with pytest.raises(NothingWillHappen):
            run.call(wait_for_ever)
        run.advance(1)
    assert is_left


@asynccontextmanager
async def open_timeline() -> AsyncIterator[Timeline]:
    timeline = Timeline()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timeline.run)
        yield timeline
        nursery.cancel_scope.cancel()


def test_in_a_stepped_run_a_timeline_acts_in_time_and_is_no_deadlock() -> None:
    acted: list[float] = []

    async def wait_for_it(timeline: Timeline) -> None:
        done = trio.Event()

        def act() -> None:
            acted.append(trio.current_time())
            if len(acted) < 3_000:
                timeline.after(0.5, act)
            else:
                done.set()

        timeline.at(0.5, act)
        with trio.CancelScope(deadline=0.7):
            await trio.sleep_forever()
        assert (acted, trio.current_time()) == ([0.5], 0.7)
        await done.wait()  # no deadline is left, only appointments

    with SteppedRun(open_timeline) as run:
        run.call(wait_for_it)
    assert acted == [index / 2 for index in range(1, 3_001)]


def test_a_stepped_run_ends_with_what_an_action_raises() -> None:
    def act() -> None:
        raise KeyError("of an action")

    async def plan(timeline: Timeline) -> None:
        timeline.at(1.0, act)

    run = SteppedRun(open_timeline)
    run.start()
    run.call(plan)
    with pytest.raises(ExceptionGroup) as caught:
        run.advance(2)
    assert caught.group_contains(KeyError, match="of an action")
    run.close()


def test_who_waits_until_all_are_blocked_comes_before_time_jumps() -> None:
    async def wait(_: Counter) -> float:
        await trio.testing.wait_all_tasks_blocked()
        return trio.current_time()

    with SteppedRun(open_counter) as run:
        assert run.call(wait) == 0.0


@pytest.mark.parametrize("is_caught", [False, True])
def test_a_run_in_which_all_wait_for_each_other_says_so(is_caught: bool) -> None:
    async def wait_for_ever() -> None:
        await trio.sleep(5)
        try:
            await trio.Event().wait()
        except trio.Cancelled:
            if not is_caught:
                raise
            raise ValueError("something else") from None

    with pytest.raises(NothingWillHappen, match="all tasks wait for each other"):
        run_virtual(wait_for_ever)


def test_a_run_whose_tasks_wait_for_time_goes_on() -> None:
    async def wait_long() -> float:
        for _ in range(3_000):
            await trio.sleep(3_600)
        return trio.current_time()

    assert run_virtual(wait_long) == 3_000 * 3_600


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of passes are enough, where it is half a million else."""
    monkeypatch.setattr(determinism, "_MAX_STILL_LOOKS", 5)


async def spin() -> None:
    while True:
        await trio.lowlevel.checkpoint()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("is_caught", [False, True])
def test_a_run_in_which_some_task_never_waits_says_which(is_caught: bool) -> None:
    async def spin_after_a_while() -> None:
        await trio.sleep(5)
        try:
            await spin()
        except trio.Cancelled:
            if not is_caught:
                raise
            raise ValueError("something else") from None

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spin_after_a_while)
            await trio.sleep(3_600)

    with pytest.raises(TimeStandsStill) as caught:
        run_virtual(main)
    assert "at 5 s; always ready: " in str(caught.value)
    assert ".spin_after_a_while at test_determinism.py:" in str(caught.value)


@pytest.mark.usefixtures("impatient")
def test_a_run_may_do_very_much_as_long_as_time_passes() -> None:
    async def work() -> None:
        for _ in range(20):
            for _ in range(2_000):
                await trio.lowlevel.checkpoint()
            await trio.sleep(0.001)

    run_virtual(work)
    with SteppedRun(open_counter) as run:
        run.call(lambda _: work())


@pytest.mark.usefixtures("impatient")
def test_a_stepped_run_notices_a_livelock_and_can_still_be_closed() -> None:
    is_left = False

    @asynccontextmanager
    async def open_world() -> AsyncIterator[None]:
        nonlocal is_left
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spin)
            yield
            nursery.cancel_scope.cancel()
        is_left = True

    with SteppedRun(open_world) as run, pytest.raises(TimeStandsStill, match="spin at "):
        run.advance(1)
    assert is_left


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("waits", [False, True])
def test_a_stepped_run_that_cannot_be_ended_leaves_the_thread_to_others(waits: bool) -> None:
    async def stay() -> None:
        with trio.CancelScope(shield=True):
            if waits:
                await trio.sleep_forever()
            await spin()

    @asynccontextmanager
    async def open_world() -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay)
            yield
            nursery.cancel_scope.cancel()

    run = SteppedRun(open_world)
    run.start()
    with pytest.raises(NothingWillHappen if waits else TimeStandsStill):
        run.close()
    del run
    assert run_virtual(tell_time) == 0


async def tell_time() -> float:
    await trio.lowlevel.checkpoint()
    return trio.current_time()
