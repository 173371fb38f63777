"""Waiting: with other threads at work, in event loops, interrupted, for ever."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

import weft
from helpers import DEADLINE, HERE, Process, pattern


def test_awaiting_many_at_once(engine: weft.Engine, target: Process) -> None:
    data = pattern(64 * 1024)
    local = engine.register(bytearray(data))
    remote = engine.open(target.hello["name"])["kv"]

    async def run() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        parts = [(i * 1024, (i + 1) * 1024) for i in range(64)]
        await asyncio.gather(*(_await(engine.start_write(local[a:b], remote[a:b])) for a, b in parts))
        ticking.cancel()
        return ticks

    asyncio.run(run())
    assert bytes.fromhex(target.ask(what="show", at=0, length=len(data))) == data


async def _await(transfer: weft.Transfer) -> None:
    await transfer


def test_an_awaited_transfer_raises_what_it_ended_with(engine: weft.Engine, target: Process) -> None:
    local = engine.register(bytearray(64))
    remote = engine.open(target.hello["name"])["kv"]
    target.kill()
    transfer = engine.start_write(local, remote[0:64], timeout=1)
    with pytest.raises(weft.Error, match=target.hello["name"]):
        asyncio.run(asyncio.wait_for(_await(transfer), 20))


def test_a_cancelled_task_leaves_the_loop_clean(engine: weft.Engine, target: Process) -> None:
    local = engine.register(bytearray(64))
    remote = engine.open(target.hello["name"])["kv"]
    target.stop()
    try:
        transfer = engine.start_write(local, remote[0:64], timeout=20)

        async def run() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(_await(transfer), 0.2)

        asyncio.run(run())
        assert not transfer.done()
        with pytest.raises(weft.TimeoutError, match="goes on"):
            transfer.wait(timeout=0.05)
    finally:
        target.child.send_signal(signal.SIGCONT)
    transfer.wait(timeout=20)
    asyncio.run(_await(transfer))


def test_two_ways_of_waiting_for_one_transfer(engine: weft.Engine, target: Process) -> None:
    local = engine.register(bytearray(64))
    remote = engine.open(target.hello["name"])["kv"]
    target.stop()
    transfer = engine.start_write(local, remote[0:64], timeout=20)
    waiting = threading.Thread(target=transfer.wait)
    waiting.start()
    threading.Timer(0.3, target.child.send_signal, [signal.SIGCONT]).start()
    asyncio.run(asyncio.wait_for(_await(transfer), 20))
    waiting.join(20)
    assert not waiting.is_alive()


def test_cancelling(engine: weft.Engine, target: Process) -> None:
    local = engine.register(bytearray(64))
    remote = engine.open(target.hello["name"])["kv"]
    target.stop()
    try:
        transfer = engine.start_write(local, remote[0:64], timeout=20)
        transfer.cancel()
        with pytest.raises(weft.CancelledError):
            transfer.wait(timeout=5)
        began = time.monotonic()
        # The peer sleeps, so nobody can know; asking ends all the same.
        assert transfer.quiesced(timeout=0.3) in (True, False)
        assert time.monotonic() - began < 10
    finally:
        target.child.send_signal(signal.SIGCONT)
    assert transfer.quiesced(timeout=20) in (True, False)


@pytest.mark.parametrize("what", ["transfer", "notification", "mooncake"])
def test_ctrl_c_ends_a_wait(what: str) -> None:
    with Process("weft_target.py") as target:
        child = subprocess.Popen(
            [sys.executable, str(HERE / "interrupted.py"), what, target.hello["name"]],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
            assert line == "waiting\n", line
            target.stop()
            child.stdout.readline()
            time.sleep(0.3)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n"
            assert time.monotonic() - began < 8
            assert child.wait(DEADLINE) == 0
        finally:
            target.child.send_signal(signal.SIGCONT)
            child.kill()
            child.wait(DEADLINE)


def ran() -> tuple[float, float]:
    """Seconds that this thread has been on a core, and seconds that it could have been but the machine was busy."""
    with open(f"/proc/self/task/{threading.get_native_id()}/schedstat") as file:
        running, delayed, _ = file.read().split()
    return int(running) / 1e9, int(delayed) / 1e9


def spin(until: Callable[[], bool]) -> tuple[float, float]:
    """A loop in Python: its speed on a core (steps per second), and the share of the time in which it was able to run.

    Whoever holds the GIL takes the second away; a busy machine takes neither.
    """
    steps, began, (running, delayed) = 0, time.monotonic(), ran()
    while not until():
        for _ in range(1000):
            steps += 1
    wall, (running_now, delayed_now) = time.monotonic() - began, ran()
    running = running_now - running
    return steps / running, (running + delayed_now - delayed) / wall


def test_another_thread_keeps_its_speed(engine: weft.Engine) -> None:
    """At least 90 % of it while a transfer of 1 GiB waits."""
    with Process("gil_target.py") as other:
        local = engine.register(bytearray(1 << 30))
        remote = engine.open(other.hello["name"])["kv"]
        engine.write(local, remote)  # pages are there, connections too
        kept: list[float] = []
        for _ in range(5):
            end = time.monotonic() + 0.3
            alone, _ = spin(lambda: time.monotonic() >= end)
            transfer, done = engine.start_write(local, remote), threading.Event()

            def wait() -> None:
                transfer.wait()
                done.set()

            waiting = threading.Thread(target=wait)
            waiting.start()
            speed, able = spin(done.is_set)
            waiting.join()
            kept.append(speed / alone * able)
            print(f"kept {kept[-1]:.2f}: speed {speed / alone:.2f}, able to run {able:.2f} of the time")
        assert sorted(kept)[len(kept) // 2] >= 0.9, kept
