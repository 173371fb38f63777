"""The example of KV transfer runs as it is, where torch is installed."""

from __future__ import annotations

import subprocess
import sys

from helpers import HERE, skip


def test_kv_transfer() -> None:
    example = HERE.parent / "examples/kv_transfer.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    if "SKIP" in done.stderr:
        skip("torch is not installed")
    assert "8 layers of 8 pages" in done.stdout
