"""What comes must go: engines, regions, transfers."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import weft
from weft.mooncake import TransferEngine


def used() -> tuple[int, int, int]:
    """Descriptors, threads, resident KiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return len(os.listdir("/proc/self/fd")), int(status["Threads"]), int(status["VmRSS"].split()[0])


def engine_once() -> None:
    with weft.Engine(protocol="tcp") as engine:
        engine.register(bytearray(64))


def dropped_once() -> None:
    weft.Engine(protocol="tcp").register(bytearray(64))


def region_once() -> None:
    with ENGINE.register(bytearray(4096)) as region:
        ENGINE.write(region, REMOTE[0:4096])


def mooncake_once() -> None:
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    engine.free_managed_buffer(engine.allocate_managed_buffer(4096), 4096)


ENGINE = weft.Engine(protocol="tcp")
OTHER = weft.Engine(protocol="tcp")
KEPT = OTHER.register(bytearray(4096), name="kv")
REMOTE = ENGINE.open(OTHER.name)["kv"]


def check(once: object, times: int, per_time_bytes: int) -> None:
    for _ in range(max(times // 10, 20)):
        once()  # type: ignore[operator]
    gc.collect()
    before = used()
    for _ in range(times):
        once()  # type: ignore[operator]
    gc.collect()
    after = used()
    assert after[0] <= before[0] + 2, f"descriptors {before[0]} -> {after[0]}"
    assert after[1] <= before[1] + 2, f"threads {before[1]} -> {after[1]}"
    grown = (after[2] - before[2]) * 1024
    # Allocators keep some; what is lost every time shows as a multiple of it.
    assert grown < 8 << 20 or grown / times < per_time_bytes, f"{grown} bytes in {times} cycles"


# `cargo xtask wheel` runs all 10,000; by itself the suite is done sooner.
TIMES = int(os.environ.get("WEFT_LEAK_CYCLES", "500"))


def test_engines_that_are_closed() -> None:
    check(engine_once, TIMES, 200)


def test_engines_that_are_dropped() -> None:
    check(dropped_once, TIMES // 5, 200)


def test_regions_and_transfers() -> None:
    check(region_once, TIMES, 100)


def test_mooncakes_engines() -> None:
    check(mooncake_once, TIMES // 5, 400)
