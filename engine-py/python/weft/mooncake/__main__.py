"""Runs a program whose `mooncake.engine` is Weft's.

    python -m weft.mooncake program.py [arguments]
    python -m weft.mooncake -m package.module [arguments]
    python -m weft.mooncake --path      prints the folder to put first into PYTHONPATH
"""

from __future__ import annotations

import os
import runpy
import sys

from . import install, shim_path


def main(arguments: list[str]) -> int:
    """Start what the arguments name; 2 if they name nothing."""
    if arguments == ["--path"]:
        print(shim_path())
        return 0
    if not arguments or (arguments[0] == "-m" and len(arguments) < 2) or arguments[0] in ("-h", "--help"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    # For the processes that the program starts.
    path = [shim_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    install()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, "")
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
