"""Unpack an archive, which may be hostile: write nothing outside of the folder, make no links, and bound all sizes.

Only files and folders are unpacked. An absolute name, a name with ``..`` and a second entry for the same file are refused.
Bytes and entries are counted before they are written.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

from percore.errors import LoadError

COPY_BYTES = 1 << 20
LONGEST_HEADER = 1 << 16
"""The most bytes of an extended header of a tar archive. Bounded, because tarfile reads it into memory."""
DIRECTORY_ENTRY_BYTES = 400
"""The most bytes of the directory of a zip archive, for each allowed entry. Bounded, because zipfile reads it into memory."""
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)
"""Errors of the libraries for a damaged archive. RuntimeError: it is encrypted, or its compression is not known."""
HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """The bytes and files that may still be written."""

    size: int
    files: int
    bound_text: str
    """The bound of the size, as text for errors."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of an archive."""

    name: str
    size: int
    kind: str
    """``file``, ``folder``, or the name of another kind."""
    content: IO[bytes] | None


def unpack(archive: Path, into: Path, limits: WriteLimits) -> None:
    """Write the files of an archive to a new folder. Raises LoadError with one sentence, also for a damaged archive."""
    entries = _zip_entries(archive, limits) if archive.name.lower().endswith(".zip") else _tar_entries(archive)
    into.mkdir()
    size = 0
    try:
        for number, entry in enumerate(entries, 1):
            size += entry.size
            if size > limits.size:
                raise LoadError(f"archive {archive.name}: unpacks to more than {limits.bound_text}")
            if number > limits.files:
                raise LoadError(f"archive {archive.name}: has more than PERCORE_FETCH_MAX_FILES={limits.files} entries")
            _write(entry, into / path_below(archive.name, entry.name))
    except FileExistsError as error:
        raise LoadError(f"archive {archive.name}: has two entries for {Path(error.filename).relative_to(into)}") from error
    except (*DAMAGED, OSError) as error:
        # An error of the disk has a number, an error of bz2 has none.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise LoadError(f"archive {archive.name}: cannot be read: {error}") from error


def path_below(archive: str, name: str) -> PurePosixPath:
    """Return the path of an entry below its folder; raise LoadError if the path could lead out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise LoadError(f"archive {archive}: entry {name[:200]!r}: must be a path below the folder, without `..`")
    return path


def _write(entry: _Entry, path: Path) -> None:
    if entry.kind == "folder":
        path.mkdir(parents=True, exist_ok=True)
        return
    if entry.content is None:
        raise LoadError(f"entry {entry.name[:200]!r} of the archive is a {entry.kind}: only files and folders are unpacked")
    path.parent.mkdir(parents=True, exist_ok=True)
    with entry.content, path.open("xb") as file:
        shutil.copyfileobj(entry.content, file, COPY_BYTES)  # tarfile and zipfile return no more than the entry's size


class _Header(tarfile.TarInfo):
    """Refuses long headers, because tarfile would read headers of any length into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in HEADERS and header.size > LONGEST_HEADER:
            raise ValueError(f"it has a header of {header.size} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise ValueError("it has a sparse file")
        return header


def _tar_entries(archive: Path) -> Iterator[_Entry]:
    with tarfile.open(archive, "r|*", tarinfo=_Header) as tar:
        for member in tar:
            kind = (
                "file" if member.isreg() and not member.issparse() else "folder" if member.isdir() else "link or special file"
            )
            yield _Entry(member.name, member.size, kind, tar.extractfile(member) if kind == "file" else None)
            tar.members.clear()  # type: ignore[attr-defined]  # typeshed lacks it; else tarfile keeps them all


def _zip_entries(archive: Path, limits: WriteLimits) -> Iterator[_Entry]:
    if _directory_bytes(archive) > DIRECTORY_ENTRY_BYTES * limits.files:
        raise LoadError(f"archive {archive.name}: its directory is too long for PERCORE_FETCH_MAX_FILES={limits.files} entries")
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            mode = info.external_attr >> 16
            kind = "folder" if info.is_dir() else "file" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "link or special file"
            yield _Entry(info.filename, info.file_size, kind, packed.open(info) if kind == "file" else None)


def _directory_bytes(archive: Path) -> int:
    """Return the size of the directory of a zip archive in bytes. The record at the end of the archive has this number."""
    with archive.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536 - 22))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise LoadError(f"archive {archive.name}: cannot be read: it has no directory")
    length: int = struct.unpack_from("<I", tail, at + 12)[0]
    return length


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
