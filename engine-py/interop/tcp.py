"""Mooncake and Weft read and write each other over TCP, both ways, in both versions of Mooncake's protocol; every byte verified."""

from __future__ import annotations

import random
import socket
import sys
import time

from pair import NAMES, OURS, THEIRS, Node, Report, settled, transfer

QUICK = "--quick" in sys.argv
SPACE = 136 << 20
SIZES = [1, 4096, 1 << 20] if QUICK else [1, 7, 64, 4096, 65536, 1 << 20, 16 << 20, 64 << 20]
BATCHES = [(65536, 128)] if QUICK else [(1, 128), (4096, 128), (65536, 128), (262144, 128)]


def free_port() -> int:
    """In Mooncake's range: it does not take others."""
    for port in random.sample(range(15000, 17000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no port is free")


def both(report: Report, initiator: str, target: str, version: int) -> None:
    """One direction: everything that the initiator can do to the target."""
    who = f"{NAMES[initiator]} -> {NAMES[target]}, tcp v{version}"
    env = {"MC_TCP_PROTO": str(version), "MC_LOG_LEVEL": "ERROR", "GLOG_minloglevel": "2"}
    # In version 1 a write has no answer: Mooncake reports success when the bytes have left.
    patience = 20.0 if version == 1 else 0.0
    # A port of its own that is the same after the restart.
    port = free_port()
    # Mooncake wants a range of more than one.
    at = {**env, "MC_MIN_RPC_PORT": str(port), "MC_MAX_RPC_PORT": str(port + 1)}
    far = Node(target, "tcp", SPACE, at)
    try:
        with Node(initiator, "tcp", SPACE, env) as near:
            report.line(who, "initialize and register", near.result == 0 and far.result == 0)
            for size in SIZES:
                for op in ("Write", "Read"):
                    transfer(report, who, near, far, op, size, 1, patience, SPACE)
            for size, count in BATCHES:
                for op in ("Write", "Read"):
                    transfer(report, who, near, far, op, size, count, patience, SPACE)
            report.line(who, "probe", near.ask("probe", session=far.session) == 0)
            report.line(who, "first buffer", near.ask("first", session=far.session) == far.address)
            code = near.ask("notify", session=far.session, remote=far.address, name="näme", msg='a "message"')
            notes: list[list[str]] = []
            end = time.monotonic() + 10
            while not notes and time.monotonic() < end:
                notes = far.ask("notes")
                time.sleep(0.01)
            report.line(who, "notification", code == 0 and notes == [["näme", 'a "message"']], f"{code} {notes}")
            if QUICK and target == THEIRS:
                # It cannot have its port back for a minute.
                report.note("SKIP: restart of a Mooncake target: --quick")
            else:
                restart(report, who, near, far, target, at, patience)
    finally:
        far.end()


def restart(
    report: Report, who: str, near: Node, far: Node, target: str, env: dict[str, str], patience: float
) -> None:
    """The target dies and comes back under its name: calls fail meanwhile and work again, by themselves, after it."""
    session = far.session
    far.end()
    code, seconds = near.ask("one", op="Write", session=session, local=0, remote=far.address, length=64)
    report.line(who, "target is gone: an error", code != 0 and seconds < 60, f"code {code} after {seconds:.1f} s")
    back = Node(target, "tcp", SPACE, env)
    try:
        # Mooncake picks one of two ports, and neither while connections to it are in TIME_WAIT (a minute).
        for _ in range(90):
            if back.session == session:
                break
            back.end()
            time.sleep(1)
            back = Node(target, "tcp", SPACE, env)
        report.line(who, "target restarts under its name", back.session == session, back.session)
        near.ask("fill", seed=99, at=0, size=4096)
        wanted = near.ask("digest", ranges=[(0, 4096)])
        tries, code = 0, -1
        while code != 0 and tries < 10:
            tries += 1
            code, _ = near.ask("one", op="Write", session=session, local=0, remote=back.address, length=4096)
        arrived = code == 0 and settled(back, [(0, 4096)], wanted, patience)
        report.line(who, "target is back: works again", arrived, f"{tries} tries")
    finally:
        back.end()


def main() -> int:
    report = Report()
    for version in (2, 1):
        both(report, THEIRS, OURS, version)
        both(report, OURS, THEIRS, version)
    return report.finish()


sys.exit(main())
