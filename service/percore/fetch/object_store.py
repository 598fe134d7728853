"""Opens and lists object stores, and turns their errors into sentences without secrets. The only module that uses obstore."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore import store as stores
from obstore.exceptions import BaseError, NotSupportedError, PermissionDeniedError, PreconditionError, UnauthenticatedError

from percore.errors import LoadError
from percore.fetch.uri import Source
from percore.settings import FetchSettings

if TYPE_CHECKING:  # the library defines these types only for type checkers
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig

READ_SECONDS = 30
"""How long a server may send nothing."""
CONNECT_SECONDS = 10
PIECE_BYTES = 1 << 19
"""How many bytes of an answer are written at once."""
QUICK_RETRIES: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
"""Retries inside obstore. After them ``transfer.retry`` tries again."""
UNRANGED = ("Range request not supported", "non-partial response")
"""An error of obstore has one of these texts if a server sends a whole file instead of a part."""
FINAL = (PermissionDeniedError, UnauthenticatedError, PreconditionError, FileNotFoundError, NotSupportedError)
STATUS = re.compile(r"status code: (\d{3})([A-Za-z ]*)")
CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
LASTING_CAUSES = (
    (
        "169.254.169.254",
        "no credentials were found: give them by the environment, or set PERCORE_FETCH_ANONYMOUS=yes for public data",
    ),
    ("Invalid Access Key", "the key of the account is not valid Base64"),
    ("UnknownIssuer", "the certificate of the server is signed by a CA that is not known: name it by PERCORE_FETCH_CA_FILE"),
    ("NotValidForName", "the certificate of the server is for another name"),
    ("Expired", "the certificate of the server has expired"),
    ("InvalidCertificate", "the certificate of the server is not valid"),
    ("Content-Length", "the server does not say how long the file is"),
)
"""A text in an error of obstore, and the sentence for it. Another attempt would fail too. The first match is used."""
TEMPORARY_CAUSES = (
    ("dns error", "the host name was not found"),
    ("ConnectionRefused", "the connection was refused"),
    ("TimedOut", f"the server sent nothing for {READ_SECONDS} s"),
    ("timed out", f"the server sent nothing for {READ_SECONDS} s"),
    ("IncompleteMessage", "the server closed the connection early"),
    ("ConnectionReset", "the server closed the connection early"),
    ("UnexpectedEof", "the server closed the connection early"),
    ("end of file before message", "the server closed the connection early"),
    ("error decoding response body", "the server closed the connection early"),
)
"""The same for errors after which another attempt may succeed."""


class StoreError(Exception):
    """A request to a store failed. The text has no secrets."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final
        """Whether another attempt would fail too."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One file in a store."""

    key: str
    """Its path in the store."""
    path: str
    """Its path relative to the fetched folder."""
    size: int
    tag: str
    """Changes with the content, if the store has ETags or times of change."""
    ranged: bool = True
    """Whether the store can send a part of it."""


def open_store(source: Source, settings: FetchSettings) -> Any:
    """Return the store of ``source``. Credentials come from the environment, as each store's own tools read them."""
    if source.scheme == "file":
        return stores.LocalStore()
    options = _client_options(source, settings)
    with store_errors():
        if source.scheme == "https":
            query = f"?{source.query}" if source.query else ""
            url = f"https://{source.host}/{source.path}{query}"
            return stores.HTTPStore(url, client_options=options, retry_config=QUICK_RETRIES)
        keys = {"s3": "endpoint", "gs": "base_url", "az": "endpoint"}
        opened = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[source.scheme]
        config: dict[str, Any] = {keys[source.scheme]: settings.endpoint} if settings.endpoint else {}
        if settings.anonymous:
            config["skip_signature"] = True
        return opened(source.host, config=config, client_options=options, retry_config=QUICK_RETRIES)


def _client_options(source: Source, settings: FetchSettings) -> ClientConfig:
    options: ClientConfig = {
        "timeout": timedelta(days=7),  # in effect no timeout, because the load timeout ends slow requests
        "read_timeout": timedelta(seconds=READ_SECONDS),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "allow_http": settings.endpoint.startswith("http://") and source.scheme != "https",
    }
    if settings.ca_file is not None:
        options["root_certificate"] = _certificates(settings.ca_file)
    if settings.authorization and source.scheme == "https":
        options["default_headers"] = {"authorization": settings.authorization}
    return options


def _certificates(path: Path) -> bytes:
    """Return the certificates in a file; raise LoadError, which names the setting, if the library could not use them."""
    try:
        content = path.read_bytes()
        # Check with a separate client, because an error of the client that fetches would be reported as an error of the server.
        stores.HTTPStore("https://localhost", client_options={"root_certificate": content})
    except OSError as error:
        raise LoadError(f"PERCORE_FETCH_CA_FILE={path}: {error.strerror}") from error
    except (BaseError, ValueError) as error:
        raise LoadError(f"PERCORE_FETCH_CA_FILE={path}: must hold valid certificates in PEM") from error
    return content


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn the errors of obstore into StoreError. Two of them are Python's own errors."""
    try:
        yield
    except (BaseError, FileNotFoundError, ValueError) as error:
        raise StoreError(reason(error), final=is_final(error)) from error


def find(store: Any, source: Source, most: int) -> list[Remote]:
    """Return the files of ``source``, sorted by path. Raises StoreError; LoadError if there is none, or more than ``most``."""
    with store_errors():
        return _find(store, source, most)


def _find(store: Any, source: Source, most: int) -> list[Remote]:
    if source.is_file:
        meta, ranged = _probe(store, "" if source.scheme == "https" else source.path)
        return [_remote(meta, source.file_name, ranged=ranged)]
    root = f"{source.path}/" if source.path else ""
    found: dict[str, Any] = {}
    for batch in obstore.list(store, source.path or None):
        found.update((meta["path"].removeprefix(root), meta) for meta in batch if meta["path"].startswith(root))
        if len(found) > most:
            raise LoadError(f"{source.loggable} has more than PERCORE_FETCH_MAX_FILES={most} files")
    # Leave out the empty objects by which consoles of S3 represent folders.
    parents = {parent for path in found for parent in _parents(path)}
    remotes = [
        _remote(meta, path) for path, meta in sorted(found.items()) if path and not (path in parents and not meta["size"])
    ]
    if not remotes:
        raise LoadError(f"{source.loggable} has no files")
    largest = max(remotes, key=lambda each: each.size)
    if largest.size and not _probe(store, largest.key)[1]:
        return [replace(each, ranged=False) for each in remotes]
    return remotes


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def open_stream(store: Any, remote: Remote, start: int, end: int) -> tuple[str, int, Iterator[bytes]]:
    """Return a file's tag, its size, and its bytes from ``start`` to ``end`` in pieces. If the
    store cannot send a range, these are all bytes.
    """
    options: GetOptions = {"range": (start, end)} if remote.ranged else {}
    with store_errors():
        result = obstore.get(store, remote.key, options=options)
        return _tag(result.meta), result.meta["size"], _pieces(result)


def _pieces(result: Any) -> Iterator[bytes]:
    with store_errors():
        yield from result.stream(min_chunk_size=PIECE_BYTES)


def _probe(store: Any, key: str) -> tuple[Any, bool]:
    """Return a file's metadata, and whether the store can send a part of it. By GET: a signed URL may allow only GET."""
    try:
        return obstore.get(store, key, options={"range": (0, 1)}).meta, True
    except BaseError as error:
        if not any(mark in str(error) for mark in UNRANGED):
            raise
    return obstore.get(store, key).meta, False


def _tag(meta: Any) -> str:
    return meta["e_tag"] or str(meta["last_modified"])


def _remote(meta: Any, path: str, *, ranged: bool = True) -> Remote:
    return Remote(meta["path"], path, meta["size"], _tag(meta), ranged)


def is_final(error: Exception) -> bool:
    """Tell whether another attempt would fail too."""
    text = str(error)
    if isinstance(error, FINAL) or any(mark in text for mark, _ in LASTING_CAUSES):
        return True
    status = STATUS.search(text)
    return status is not None and status[1].startswith("4") and status[1] not in ("408", "425", "429")


def reason(error: Exception) -> str:
    """Return one sentence for an error of a store. It has no header, no query and no body, because those may be secret."""
    text = str(error)
    status = STATUS.search(text)
    if status:
        code = CODE.search(text)
        return f"the server answers {status[1]}{status[2].rstrip()}" + (f" ({code[1]})" if code else "")
    for mark, meaning in LASTING_CAUSES + TEMPORARY_CAUSES:
        if mark in text:
            return meaning
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    first = text.split("\n", 1)[0] or type(error).__name__
    return re.sub(r"\?\S+", "?...", re.sub(r"//\S*@", "//", first))
