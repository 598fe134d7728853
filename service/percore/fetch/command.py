"""``percore fetch``: fetch models, check, unpack and arrange them, and put them in place by one rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import queue
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from percore import model_source
from percore.errors import LoadError
from percore.fetch import archive, digest, layout, object_store
from percore.fetch.object_store import StoreError
from percore.fetch.progress import MEGA, Progress
from percore.fetch.transfer import Journal, Stopped, Transfer, retry
from percore.fetch.uri import Source, parse
from percore.model_source import ModelSource
from percore.settings import Settings

logger = logging.getLogger("percore.fetch")

TERMINATION_LOG = Path("/dev/termination-log")
"""A container writes its error to this file, and Kubernetes shows it as the reason of the end."""
SPARE_BYTES = 1 << 30
"""A fetch leaves at least this much of the disk free, or a twentieth of the disk if that is less."""


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One fetch: the source, the folder and the digest."""

    source: Source
    folder: Path
    name: str
    """The name of a model that is fetched without one; empty: the name in the URI."""
    digest: str
    """Empty: any."""


def fetch(settings: Settings, uri: str, folder: Path, name: str) -> None:
    """Fetch models to ``folder``, in TensorFlow Serving's layout. Raises LoadError. A pod shows its message as the
    reason why the container ended.

    After an error the caller ends the process: threads may still wait for the server.
    """
    try:
        wanted = FetchRequest(parse(uri), folder.absolute(), name, settings.models.digest)
        _Fetch(wanted, settings).within(settings.limits.load_timeout)
    except LoadError as error:
        with contextlib.suppress(OSError):
            if TERMINATION_LOG.exists():
                TERMINATION_LOG.write_text(f"{error}\n")
        raise


class _Fetch:
    """One fetch. It runs in a thread, so that a slow server or disk does not delay the timeout."""

    def __init__(self, wanted: FetchRequest, settings: Settings) -> None:
        self._wanted = wanted
        self._settings = settings
        self._progress = Progress()
        self._stop = threading.Event()

    def within(self, seconds: float) -> None:
        """Fetch; raise LoadError if the fetch fails, or if it takes longer than ``seconds``."""
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def run() -> None:
            try:
                self._run()
                ended.put(None)
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
                ended.put(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            error = ended.get(timeout=seconds)
        except queue.Empty:
            self._stop.set()
            trouble = f"; the last error: {self._progress.trouble}" if self._progress.trouble else ""
            raise LoadError(
                f"{self._wanted.source.loggable} was not fetched within PERCORE_LOAD_TIMEOUT={seconds:g} s: "
                f"{self._progress.text()}{trouble}"
            ) from None
        if error is not None:
            raise error

    def _run(self) -> None:
        source, folder, digest_wanted = self._wanted.source, self._wanted.folder, self._wanted.digest
        earlier = _earlier_fetch(folder)
        if earlier and digest_wanted and earlier.digest == digest_wanted:
            logger.info("%s holds the models with the digest %s", folder, earlier.digest)
            return
        staging = folder.with_name(f".{folder.name}.fetch")
        with _disk_errors(source, staging), _locked(staging):
            try:
                found = self._transfer(staging)
            except StoreError as error:
                raise LoadError(f"{source.loggable} cannot be fetched: {error}") from error
            if digest_wanted and digest_wanted != found:
                archive.remove(staging / "journal")
                archive.remove(staging / "files")
                raise LoadError(f"{source.loggable} has the digest {found}: must be {digest_wanted}")
            repository = _arranged(self._wanted, staging, self._settings)
            model_source.write(repository, ModelSource(source.loggable, found))
            if self._stop.is_set():
                raise Stopped
            _install(repository, folder, staging)
            logger.info("%s holds the models of %s, digest %s", folder, source.loggable, found)

    def _transfer(self, staging: Path) -> str:
        """Fetch the files to ``staging``, and return their digest. Raises StoreError, LoadError and OSError."""
        source, progress, options = self._wanted.source, self._progress, self._settings.fetch
        store = object_store.open_store(source, options)
        remotes = retry(lambda: object_store.find(store, source, options.max_files), progress, self._stop)
        total = sum(remote.size for remote in remotes)
        journal = Journal(staging / "journal", remotes)
        if not journal.resumes:
            archive.remove(staging / "files")
        _check_room(source, staging, total, self._settings)
        progress.total = total
        logger.info("fetching %s: %d files, %.1f MB", source.loggable, len(remotes), total / MEGA)
        with progress.shown(), contextlib.closing(journal):
            transfer = Transfer(store, staging / "files", journal, progress, self._stop)
            hashes = transfer.run(remotes, options.connections)
        logger.info("fetched %s", progress.text())
        return digest.PREFIX + hashes[remotes[0].path] if source.is_file else digest.of_folder(hashes)


def _earlier_fetch(folder: Path) -> ModelSource | None:
    """Return the source of an earlier fetch; raise LoadError if the folder has other content."""
    if not folder.exists():
        return None
    note = model_source.read(folder)
    if note is None and (not folder.is_dir() or any(folder.iterdir())):
        raise LoadError(f"{folder} is there and was not made by `percore fetch`: name another folder, or remove it")
    return note


def _arranged(wanted: FetchRequest, staging: Path, settings: Settings) -> Path:
    """Unpack and arrange the fetched files; return the folder with the models, in ``staging``."""
    tree, repository, fetched = staging / "tree", staging / "repository", staging / "files"
    for each in (tree, repository):
        archive.remove(each)
    if wanted.source.is_archive:
        packed = fetched / wanted.source.file_name
        archive.unpack(packed, tree, _write_limits(staging, settings))
        packed.unlink()
    else:
        fetched.rename(tree)
    archive.remove(staging / "journal")
    name, version = wanted.source.default_name()
    layout.arrange(tree, repository, wanted.name or name, version)
    return repository


def _install(repository: Path, folder: Path, staging: Path) -> None:
    """Replace the folder by the repository."""
    old = staging / "old"
    archive.remove(old)
    if folder.exists():
        folder.rename(old)
    repository.rename(folder)
    archive.remove(staging)


def _bytes_on_disk(folder: Path) -> int:
    return sum(each.stat().st_blocks * 512 for each in folder.rglob("*") if each.is_file())


def _write_limits(folder: Path, settings: Settings) -> archive.WriteLimits:
    """Return the bytes and files that may still be written."""
    disk = shutil.disk_usage(folder)
    free = max(0, disk.free - min(SPARE_BYTES, disk.total // 20))
    allowed = settings.fetch.max_bytes - _bytes_on_disk(folder)
    if allowed <= free:
        text = f"PERCORE_FETCH_MAX_BYTES={settings.fetch.max_bytes} allows"
        return archive.WriteLimits(max(0, allowed), settings.fetch.max_files, text)
    return archive.WriteLimits(free, settings.fetch.max_files, f"the disk has room for, {free} bytes")


def _check_room(source: Source, staging: Path, total: int, settings: Settings) -> None:
    limits = _write_limits(staging, settings)
    if total > limits.size + _bytes_on_disk(staging / "files"):
        raise LoadError(f"{source.loggable} has {total} bytes, which is more than {limits.bound_text}")


@contextlib.contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Make the folder and lock it, so that no other process fetches to the same place."""
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
        raise LoadError(f"{source.loggable} cannot be stored: {error.strerror or error}") from error
