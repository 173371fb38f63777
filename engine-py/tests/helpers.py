"""What the tests share: other processes to talk to, and memory to look into."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
DEADLINE = 60.0
"""Seconds after which a test process is stuck."""

MODULES = ["weft.mooncake", "mooncake.engine"]


def skip(reason: str) -> None:
    """Skip, in the words that `cargo xtask test` counts."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "test").split(" ")[0]
    print(f"SKIP: {test}: {reason}", file=sys.stderr, flush=True)
    pytest.skip(reason)


def module(name: str) -> Any:
    """A module, or a skipped test where it is not installed."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        skip(f"{name} is not installed")
    return importlib.import_module(name)


class Process:
    """A Python program of this folder that answers each line of JSON with one."""

    def __init__(self, program: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.child = subprocess.Popen(
            [sys.executable, str(HERE / program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.hello = self._read()

    def _read(self) -> Any:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            # Mooncake prints on standard output, too.
            if line.startswith("> "):
                return json.loads(line[2:])
        raise AssertionError(f"the process ended with {self.child.wait(DEADLINE)}")

    def ask(self, **question: Any) -> Any:
        """One question, one answer."""
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(question) + "\n")
        self.child.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """Freeze it; returns when all its threads stand, which a busy machine takes a while for."""
        self.child.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.child.pid}/task")
        end = time.monotonic() + DEADLINE
        # The state follows the name, which is in parentheses.
        while any((task / "stat").read_text().rpartition(") ")[2][0] != "T" for task in tasks.iterdir()):
            assert time.monotonic() < end, "the process does not stop"
            time.sleep(0.001)

    def kill(self) -> None:
        """End it at once."""
        self.child.kill()
        self.child.wait(DEADLINE)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


def reply(answer: Any) -> None:
    """For the other side: answer a question."""
    print("> " + json.dumps(answer), flush=True)


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes in which every misplacement shows."""
    block = bytes((i * 31 + (i >> 8) * 17 + seed * 101 + 7) & 0xFF for i in range(min(length, 65536 + 251)))
    return (block * (length // max(len(block), 1) + 1))[:length]


def array(length: int, fill: bytes = b"") -> tuple[Any, int]:
    """Memory of ctypes, and its address."""
    memory = (ctypes.c_char * length)()
    memory[: len(fill)] = fill  # type: ignore[assignment]
    return memory, ctypes.addressof(memory)
