r"""Digests: the digest of a file is its SHA-256, and the digest of a folder is the SHA-256 of its manifest.

The manifest has a line for each file, ``SHA256  relative/path``, as ``sha256sum`` writes it, sorted by the bytes of the path.
So an operator can compute the digest of a folder without percore::

    find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

PREFIX = "sha256:"


def of_folder(files: Mapping[str, str]) -> str:
    """Return the digest of a folder; ``files`` has the SHA-256 of each file, in hexadecimal digits, by relative path."""
    lines = (f"{files[path]}  {path}\n" for path in sorted(files, key=str.encode))
    return PREFIX + hashlib.sha256("".join(lines).encode()).hexdigest()
