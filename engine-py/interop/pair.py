"""Two processes, one with each module, and what is tried between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OURS, THEIRS = "weft.mooncake", "mooncake.engine"
NAMES = {OURS: "weft", THEIRS: "mooncake"}


class Node:
    """A process; `ask` is one question and its answer."""

    def __init__(self, module: str, protocol: str, length: int, env: dict[str, str]) -> None:
        self.module = module
        # What it says is shown only if something fails.
        self.log = tempfile.TemporaryFile("w+")
        self.child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("node.py")), module, protocol, str(length)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, **env},
        )
        hello = self._read()
        self.result: int = hello["result"]
        self.session: str = hello["session"]
        self.address: int = hello["address"]

    def _read(self) -> Any:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if line.startswith("> "):
                return json.loads(line[2:])
        raise RuntimeError(f"{self.module} ended with {self.child.wait(30)}: {self.said()}")

    def ask(self, what: str, **question: Any) -> Any:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps({"what": what, **question}) + "\n")
        self.child.stdin.flush()
        return self._read()

    def said(self, lines: int = 4) -> str:
        """The end of what it has said on standard error."""
        self.log.seek(0)
        return " | ".join(self.log.read().strip().splitlines()[-lines:])

    def end(self) -> None:
        self.child.kill()
        self.child.wait(30)
        self.log.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Report:
    """Lines of a table, and whether all was well."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.passed = 0

    def line(self, who: str, what: str, ok: bool, detail: str = "") -> None:
        print(f"{'ok    ' if ok else 'FAILED'} {who:<34} {what:<34} {detail}", flush=True)
        if ok:
            self.passed += 1
        else:
            self.failed.append(f"{who} {what}: {detail}")

    def note(self, text: str) -> None:
        print(f"       {text}", flush=True)

    def finish(self) -> int:
        print(f"{self.passed} passed, {len(self.failed)} failed", flush=True)
        return 1 if self.failed else 0


def settled(node: Node, ranges: list[tuple[int, int]], wanted: str, patience: float) -> bool:
    """Whether the bytes are there; `patience` seconds are for protocols that report success before they are."""
    end = time.monotonic() + patience
    while True:
        if node.ask("digest", ranges=ranges) == wanted:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.01)


def transfer(
    report: Report, who: str, near: Node, far: Node, op: str, size: int, count: int, patience: float, space: int
) -> None:
    """`count` blocks of `size` bytes, in one call, into every other block of the target's memory; verified, and what lies between
    them, too."""
    stride = size * 2 if count > 1 else size
    shift = 64
    local = [(64 + i * stride, size) for i in range(count)]
    remote = [(64 + i * stride + shift, size) for i in range(count)]
    end = remote[-1][0] + size + 64
    assert end <= space, (end, space)
    source, sink = (near, far) if op == "Write" else (far, near)
    out, into = (local, remote) if op == "Write" else (remote, local)
    source.ask("fill", seed=size * 7 + count, at=0, size=end)
    sink.ask("clear", at=0, size=end)
    gaps, at = [], 0
    for start, length in into:
        gaps.append((at, start - at))
        at = start + length
    gaps.append((at, end - at))
    untouched = sink.ask("digest", ranges=gaps)
    wanted = source.ask("digest", ranges=out)
    addresses = [far.address + at for at, _ in remote]
    if count == 1:
        code, seconds = near.ask("one", op=op, session=far.session, local=local[0][0], remote=addresses[0], length=size)
    else:
        offsets = [at for at, _ in local]
        code, seconds = near.ask(
            "batch", op=op, session=far.session, local=offsets, remote=addresses, lengths=[size] * count
        )
    arrived = code == 0 and settled(sink, into, wanted, patience if op == "Write" else 0)
    clean = sink.ask("digest", ranges=gaps) == untouched
    blocks = f"{count} x {size}" if count > 1 else f"{size}"
    detail = f"{size * count / max(seconds, 1e-9) / 1e9:.2f} GB/s" if arrived and clean else (
        f"code {code}, arrived {arrived}, rest untouched {clean}; {near.said(2)}"
    )
    report.line(who, f"{op.lower()} {blocks} B", arrived and clean, detail)
