"""Mooncake's EFA build over EFA cards (software ones, usually): with itself, and with Weft."""

from __future__ import annotations

import sys

from pair import NAMES, OURS, THEIRS, Node, Report, transfer

QUICK = "--quick" in sys.argv
SPACE = 136 << 20
SIZES = [64, 65536, 1 << 20] if QUICK else [64, 4096, 65536, 1 << 20, 16 << 20, 64 << 20]
BATCH = (65536, 512)
ENV = {"MC_LOG_LEVEL": "WARNING"}


def pair(report: Report, initiator: str, target: str, protocol: dict[str, str], must: bool) -> None:
    """Everything between two processes. Where it need not work, the cause is shown, and that is all that is asked."""
    who = f"{NAMES[initiator]} -> {NAMES[target]}, efa"
    with Node(target, protocol[target], 2 * SPACE, ENV) as far, Node(initiator, protocol[initiator], 2 * SPACE, ENV) as near:
        report.line(who, "initialize and register", near.result == 0 and far.result == 0, f"{near.said(1)} {far.said(1)}"[:200])
        if near.result or far.result:
            return
        code, _ = near.ask("one", op="Write", session=far.session, local=0, remote=far.address, length=64)
        if code != 0 and not must:
            report.line(who, "is refused, and says why", bool(near.said() or far.said()), f"code {code}")
            report.note(f"{NAMES[initiator]}: {near.said(3)}")
            report.note(f"{NAMES[target]}: {far.said(3)}")
            return
        for size in SIZES:
            for op in ("Write", "Read"):
                transfer(report, who, near, far, op, size, 1, 0, SPACE)
        for op in ("Write", "Read"):
            transfer(report, who, near, far, op, *BATCH, 0, SPACE)


def main() -> int:
    report = Report()
    protocol = {OURS: "efa", THEIRS: "efa"}
    pair(report, THEIRS, THEIRS, protocol, must=True)
    pair(report, OURS, OURS, protocol, must=True)
    protocol[OURS] = "auto"
    pair(report, THEIRS, OURS, protocol, must=False)
    pair(report, OURS, THEIRS, protocol, must=False)
    return report.finish()


sys.exit(main())
