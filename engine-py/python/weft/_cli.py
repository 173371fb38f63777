"""The console script `weft`: the command line program, which is the same library."""

from __future__ import annotations

import signal
import sys

from ._weft import run_program


def main() -> int:
    """Run it with the arguments of this process; returns its exit status."""
    # The program handles Ctrl-C itself; Python's handler would wait for a chance that does not come.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return run_program(["weft", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
