"""Reads the URI of models: the scheme, the place, and a name for a model that has none. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from percore.errors import LoadError
from percore.handlers.files import KERAS_SUFFIXES
from percore.settings import NAME

SCHEMES = ("s3", "gs", "az", "https", "file")
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
DEFAULT_NAME = "model"


@dataclass(frozen=True, slots=True)
class Source:
    """The place of models in a store, on a web server or in a folder."""

    scheme: str
    host: str
    """The bucket, or the container in Azure; for https the host and the port; empty for file."""
    path: str
    """Without a slash at its ends; not decoded for https."""
    query: str
    """Only for https. It may have a signature, so it is never logged."""

    @property
    def loggable(self) -> str:
        """Return the URI without its query, which must not be logged."""
        return f"{self.scheme}://{self.host}/{self.path}" + ("?..." if self.query else "")

    @property
    def file_name(self) -> str:
        """Return the last segment of the path, decoded."""
        name = self.path.rpartition("/")[2]
        return unquote(name) if self.scheme == "https" else name

    @property
    def is_archive(self) -> bool:
        """Tell whether it is one archive, which must be unpacked."""
        return self.file_name.lower().endswith(ARCHIVES)

    @property
    def is_file(self) -> bool:
        """Tell whether it is one file and not a folder."""
        return self.is_archive or self.file_name.lower().endswith(KERAS_SUFFIXES)

    def default_name(self) -> tuple[str, int]:
        """Return a name and a version from the end of the path. They are used if the user gave none for a single model."""
        parts = [unquote(part) for part in PurePosixPath(self.path).parts] or [self.host]
        suffix = next((each for each in (*ARCHIVES, *KERAS_SUFFIXES) if parts[-1].lower().endswith(each)), "")
        last = parts[-1][: len(parts[-1]) - len(suffix)]
        version = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else None
        name = last if version is None else (parts[-2] if len(parts) > 1 else DEFAULT_NAME)
        try:
            return str(NAME.parse(name)), 1 if version is None else version
        except ValueError:
            return DEFAULT_NAME, 1 if version is None else version


def parse(uri: str) -> Source:
    """Return the source that ``uri`` names. Raise LoadError, which names the broken rule and has no secrets."""
    try:
        parts = urlsplit(uri)
        has_user = parts.username is not None or parts.password is not None
    except ValueError:
        raise LoadError("the URI of the models cannot be read: its host is not well-formed") from None
    scheme = parts.scheme.lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise LoadError(f"the URI of the models begins with {scheme or uri.partition('/')[0]!r}: must be one of {known}")
    if has_user:
        raise LoadError(f"the {scheme}:// URI of the models has a user or a password: set PERCORE_FETCH_AUTHORIZATION instead")
    if (scheme == "file") == bool(parts.netloc):
        raise LoadError(
            f"{scheme}://{parts.netloc}: " + ("must be file:///PATH" if scheme == "file" else "a bucket or host is missing")
        )
    if scheme != "https" and parts.query:
        raise LoadError(f"the {scheme}:// URI of the models has a query: only https:// may have one")
    path = parts.path if scheme == "https" else unquote(parts.path)
    if any(part in (".", "..") for part in path.split("/")):
        raise LoadError(f"{scheme}://{parts.netloc}{path}: must have no segment that is . or ..")
    source = Source(scheme, parts.netloc, path.strip("/"), parts.query)
    if scheme == "https" and not source.is_file:
        endings = ", ".join((*ARCHIVES, *KERAS_SUFFIXES))
        raise LoadError(f"{source.loggable}: must end with one of {endings}, because https:// cannot list a folder")
    return source
