"""Stands before Mooncake's package on the path: `engine` is Weft's, everything else is still Mooncake's where that is installed."""

from pathlib import Path
from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

# What an installed Mooncake's own package says when it is imported; its submodules are found after ours.
for _folder in __path__[1:]:
    _theirs = Path(_folder, "__init__.py")
    if _theirs.is_file():
        exec(compile(_theirs.read_bytes(), str(_theirs), "exec"))
        break
