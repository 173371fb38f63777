"""Mooncake's EFA build over EFA cards (software ones, usually): with itself, and with Weft."""

from __future__ import annotations

import os
import subprocess
import sys

from pair import NAMES, OURS, THEIRS, Node, Report, transfer

QUICK = "--quick" in sys.argv
SPACE = 136 << 20
SIZES = [64, 65536, 1 << 20] if QUICK else [64, 4096, 65536, 1 << 20, 16 << 20, 64 << 20]
BATCH = (65536, 512)
ENV = {"MC_LOG_LEVEL": "WARNING"}


def carried(pid: int) -> dict[str, int] | None:
    """Bytes that a process's cards have written and read; None where the cards are not software ones that count them."""
    launcher = os.environ.get("WEFT_SOFT_EFA")
    if launcher is None:
        return None
    said = subprocess.run([launcher, "ctl", "counters"], capture_output=True, text=True, check=True).stdout
    total = {"write": 0, "read": 0}
    for line in said.splitlines():
        counts = dict(word.split("=", 1) for word in line.split())
        if counts["pid"] == str(pid):
            for op in total:
                total[op] += int(counts[f"{op}_bytes"])
    return total


def pair(report: Report, initiator: str, target: str) -> None:
    """Everything between two processes. Neither may go another way than EFA, and the cards have to say that they carried it."""
    who = f"{NAMES[initiator]} -> {NAMES[target]}, efa"
    with Node(target, "efa", SPACE, ENV) as far, Node(initiator, "efa", SPACE, ENV) as near:
        up = near.result == 0 and far.result == 0
        report.line(who, "initialize and register", up, "" if up else f"{near.said()} {far.said()}")
        if not up:
            return
        for op in ("Write", "Read"):
            for size in SIZES:
                transfer(report, who, near, far, op, size, 1, 0, SPACE)
            transfer(report, who, near, far, op, *BATCH, 0, SPACE)
        counted = carried(near.child.pid)
        if counted is None:
            report.note("SKIP: bytes that the cards carried: the cards do not say")
            return
        moved = sum(SIZES) + BATCH[0] * BATCH[1]
        report.line(who, "the cards carried it", min(counted.values()) >= moved, f"{counted}, asked for {moved} each way")


def main() -> int:
    report = Report()
    for initiator, target in [(THEIRS, THEIRS), (OURS, OURS), (THEIRS, OURS), (OURS, THEIRS)]:
        pair(report, initiator, target)
    return report.finish()


sys.exit(main())
