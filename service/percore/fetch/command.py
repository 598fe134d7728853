"""``percore fetch``: fetch, check, unpack, arrange, and put in place by one rename."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from percore import model_source
from percore.errors import LoadError
from percore.fetch import archive, digest, layout, object_store
from percore.fetch.progress import MEGA, Progress
from percore.fetch.transfer import Journal, Transfer, retry
from percore.fetch.uri import Source, parse
from percore.model_source import ModelSource
from percore.settings import Settings

logger = logging.getLogger("percore.fetch")

TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes shows what a container writes here as the reason why it ended."""
SPARE_BYTES = 1 << 30
"""A fetch leaves at least this much of the disk free, or a twentieth of the disk if that is less."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be fetched, and to where."""

    source: Source
    folder: Path
    name: str
    """For one model without a name; empty: as the URI says."""
    digest: str
    """Empty: any."""


def fetch(settings: Settings, uri: str, folder: Path, name: str) -> None:
    """Fetch models to ``folder``, in TensorFlow Serving's layout. Raises LoadError, which the pod shows too."""
    seconds = settings.limits.load_timeout
    progress: list[Progress] = []
    try:
        wanted = Wanted(parse(uri), folder.absolute(), name, settings.models.digest)
        try:
            asyncio.run(_within(seconds, wanted, settings, progress))
        except TimeoutError:
            raise LoadError(_late(wanted.source, seconds, progress)) from None
    except LoadError as error:
        with contextlib.suppress(OSError):
            if TERMINATION_LOG.exists():
                TERMINATION_LOG.write_text(f"{error}\n")
        raise


async def _within(seconds: float, wanted: Wanted, settings: Settings, progress: list[Progress]) -> None:
    async with asyncio.timeout(seconds):
        await _fetch(wanted, settings, progress)


def _late(source: Source, seconds: float, progress: list[Progress]) -> str:
    reached = progress[0].text() if progress else "its files are not known yet"
    trouble = f"; the last error: {progress[0].trouble}" if progress and progress[0].trouble else ""
    return f"{source.shown} was not fetched within PERCORE_LOAD_TIMEOUT={seconds:g} s: {reached}{trouble}"


async def _fetch(wanted: Wanted, settings: Settings, shown: list[Progress]) -> None:
    source, folder = wanted.source, wanted.folder
    known = _known(folder)
    if known and wanted.digest and known.digest == wanted.digest:
        logger.info("%s holds the models with the digest %s", folder, known.digest)
        return
    staging = folder.with_name(f".{folder.name}.fetch")
    with _disk_errors(source, staging), _locked(staging):
        opened = object_store.open_store(source, settings.fetch)
        try:
            remotes = await retry(lambda: object_store.find(opened, source, settings.fetch.max_files))
            total = sum(remote.size for remote in remotes)
            journal = Journal(staging / "journal", remotes)
            if not journal.resumes:
                archive.remove(staging / "files")
            _check_room(source, staging, total, settings)
            progress = Progress(total)
            shown.append(progress)
            logger.info("fetching %s: %d files, %.1f MB", source.shown, len(remotes), total / MEGA)
            showing = asyncio.create_task(progress.show())
            try:
                hashes = await Transfer(opened, staging / "files", journal, progress, settings.fetch.connections).run(remotes)
            finally:
                showing.cancel()
                await asyncio.wait([showing])
                journal.close()
        except LoadError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
                raise
            raise LoadError(f"{source.shown} cannot be fetched: {object_store.reason(error)}") from error
        logger.info("fetched %s", progress.text())
        found = digest.PREFIX + hashes[remotes[0].path] if source.is_file else digest.of_folder(hashes)
        if wanted.digest and wanted.digest != found:
            archive.remove(staging / "journal")
            archive.remove(staging / "files")
            raise LoadError(f"{source.shown} has the digest {found}: must be {wanted.digest}")
        await asyncio.to_thread(_put, wanted, staging, found, settings)
        logger.info("%s holds the models of %s, digest %s", folder, source.shown, found)


def _known(folder: Path) -> ModelSource | None:
    """Return what an earlier fetch left; raise LoadError if the folder holds anything else."""
    if not folder.exists():
        return None
    note = model_source.read(folder)
    if note is None and (not folder.is_dir() or any(folder.iterdir())):
        raise LoadError(f"{folder} is there and was not made by `percore fetch`: name another folder, or remove it")
    return note


def _put(wanted: Wanted, staging: Path, found: str, settings: Settings) -> None:
    """Unpack, arrange, and replace the folder."""
    source, folder = wanted.source, wanted.folder
    tree, repository, old = staging / "tree", staging / "repository", staging / "old"
    for each in (tree, repository, old):
        archive.remove(each)
    fetched = staging / "files"
    if source.is_archive:
        packed = fetched / source.file_name
        archive.unpack(packed, tree, _room(staging, settings))
        packed.unlink()
    else:
        fetched.rename(tree)
    archive.remove(staging / "journal")
    name, version = source.default_name()
    layout.arrange(tree, repository, wanted.name or name, version)
    model_source.write(repository, ModelSource(source.shown, found))
    if folder.exists():
        folder.rename(old)
    repository.rename(folder)
    archive.remove(staging)


def _bytes_on_disk(folder: Path) -> int:
    return sum(each.stat().st_blocks * 512 for each in folder.rglob("*") if each.is_file())


def _room(folder: Path, settings: Settings) -> archive.Room:
    """Return what may still be written."""
    disk = shutil.disk_usage(folder)
    free = max(0, disk.free - min(SPARE_BYTES, disk.total // 20))
    allowed = settings.fetch.max_bytes - _bytes_on_disk(folder)
    if allowed <= free:
        said = f"PERCORE_FETCH_MAX_BYTES={settings.fetch.max_bytes} allows"
        return archive.Room(max(0, allowed), settings.fetch.max_files, said)
    return archive.Room(free, settings.fetch.max_files, f"the disk has room for, {free} bytes")


def _check_room(source: Source, staging: Path, total: int, settings: Settings) -> None:
    room = _room(staging, settings)
    if total > room.size + _bytes_on_disk(staging / "files"):
        raise LoadError(f"{source.shown} has {total} bytes, which is more than {room.said}")


@contextlib.contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Make the folder, and keep other processes that fetch to the same place out of it."""
    staging.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LoadError(f"another process fetches to {staging}") from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(source: Source, staging: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            shutil.rmtree(staging, ignore_errors=True)
        raise LoadError(f"{source.shown} cannot be stored: {error.strerror or error}") from error
