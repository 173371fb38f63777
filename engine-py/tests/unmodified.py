"""Stands for a program that knows nothing of Weft, and starts another one."""

import subprocess
import sys

from mooncake.engine import TransferEngine

print(TransferEngine.__module__, sys.argv[1:], flush=True)
child = "from mooncake.engine import TransferEngine; print(TransferEngine.__module__)"
subprocess.run([sys.executable, "-c", child], check=True)
