"""The console script."""

from __future__ import annotations

import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "weft", *arguments], capture_output=True, text=True, timeout=60)


def test_the_program_runs_and_its_exit_status_comes_through() -> None:
    import weft

    version = run("--version")
    assert version.returncode == 0 and weft.__version__ in version.stdout
    wrong = run("no-such-command")
    assert wrong.returncode == 2 and "no-such-command" in wrong.stderr
