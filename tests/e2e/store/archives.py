"""Hostile archives: ``python archives.py FOLDER``."""

import io
import sys
import tarfile
from pathlib import Path

folder = Path(sys.argv[1])
ZEROS = 200_000_000
"""More than the tests allow a fetch to write. Compressed these are 200 KB."""


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size = kind, size
    if kind == tarfile.SYMTYPE:
        made.linkname = "/etc"
    return made


for name, each in {
    "parent": member("../evil", size=4),
    "link": member("digits/1/link", tarfile.SYMTYPE),
    "bomb": member("digits/1/saved_model.pb", size=ZEROS),
}.items():
    with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as archive:
        archive.addfile(each, io.BytesIO(bytes(each.size)))
