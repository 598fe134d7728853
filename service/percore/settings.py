"""The environment, read once, into frozen settings.

Each field names its key, its default and the rule for its values. The docstring under it says what the setting means, and why
it exists. ``docs/settings.md`` is generated from this file. A bad value raises SettingsError naming key, value and rule. Anyone
may import this module; it imports only ``percore.errors`` and ``percore.app_target``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from percore import app_target
from percore.errors import SettingsError

T = TypeVar("T")
Parser = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a value is read. ``text`` states the rule in words; ``parse`` raises ValueError if the value breaks it."""

    text: str
    parse: Parser
    is_secret: bool = False
    """Whether a value must not be shown."""


NAME_PATTERN = r"(?=[^:=]*[^.:=])[\w.-]{1,128}"
LONGEST_FOLDER = 90
"""Bytes. The kernel allows 107 for the whole path of a unix socket, and the socket's name follows this folder."""


def setting(key: str, default: str, rule: Rule) -> Any:
    """Declare a field that is read from the environment's ``key``."""
    return field(metadata={"key": key, "default": default, "rule": rule})


def checked(convert: Callable[[str], T], accepts: Callable[[T], bool]) -> Parser:
    """Return a parser: ``convert`` the text, and raise ValueError unless ``accepts`` returns true for the value."""

    def parse(text: str) -> T:
        value = convert(text)
        if not accepts(value):
            raise ValueError
        return value

    return parse


def within(low: int, high: int) -> Rule:
    """Return the rule for whole numbers from ``low`` to ``high``."""
    return Rule(f"a whole number from {low} to {high}", checked(int, lambda value: low <= value <= high))


def one_of(*choices: str) -> Rule:
    """Return the rule for a choice of words."""
    return Rule("one of " + ", ".join(f"`{choice}`" for choice in choices), checked(str, lambda text: text in choices))


def _labels(text: str) -> dict[str, dict[str, int]]:
    labels: dict[str, dict[str, int]] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(rf"({NAME_PATTERN}):({NAME_PATTERN})=(\d+)", entry)
        if not match or match[2] in labels.get(match[1], {}):
            raise ValueError
        labels.setdefault(match[1], {})[match[2]] = int(match[3])
    return labels


def _socket_folder(text: str) -> Path:
    folder = Path(text).absolute()  # absolute, because the gateway finds the workers' sockets by this path
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        raise ValueError
    return folder


def _modules(text: str) -> tuple[str, ...]:
    names = tuple(each.strip() for each in text.split(",")) if text.strip() else ()
    if not all(re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) for name in names):
        raise ValueError
    return names


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError
    return text == "yes"


def _before_fork(text: str) -> tuple[str, ...] | None:
    if not text.strip():
        return None
    return () if text.strip() == "no" else _modules(text)


WEEK_SECONDS = 7 * 24 * 3600
SECONDS = Rule(f"seconds, more than 0, at most {WEEK_SECONDS}", checked(float, lambda value: 0 < value <= WEEK_SECONDS))
PORT = within(1, 65535)


def _file(text: str) -> Path | None:
    return Path(text) if text else None


DIGEST = Rule(
    "empty, or `sha256:` and 64 hexadecimal digits",
    checked(str.lower, lambda text: re.fullmatch(r"(sha256:[0-9a-f]{64})?", text) is not None),
)
ENDPOINT = Rule(
    "empty, or `http://` or `https://` and a host, without a user",
    checked(lambda text: text.rstrip("/"), lambda text: re.fullmatch(r"(https?://[^\s@?#]+)?", text) is not None),
)
OPTIONAL_PATH = Rule("empty, or a path", _file)
HANDLER = Rule("empty, or `module:Class`", checked(str, lambda text: re.fullmatch(r"([\w.]+:\w+)?", text) is not None))
APP = Rule(
    "empty, `module`, `module:app` or `module:factory()`, with literal arguments if need be",
    checked(str, lambda text: not text or bool(app_target.parse(text))),
)
MODULES = Rule("empty, or names of modules with commas between them", _modules)
TAGS = Rule("names with commas between them", checked(lambda text: tuple(each.strip() for each in text.split(",")), all))
YES_OR_NO = Rule("`yes` or `no`", _yes_or_no)
BEFORE_FORK = Rule("empty, `no`, or names of modules with commas between them", _before_fork)
NAME = Rule(
    "1 to 128 letters, digits, `.`, `_` or `-`, not all of them dots",
    checked(str, lambda text: re.fullmatch(NAME_PATTERN, text) is not None),
)
LABELS = Rule("empty, or `MODEL:LABEL=VERSION` entries with commas between them, each label of a model once", _labels)
TEXT = Rule("any text", str)
PATH = Rule("a path", Path)
SOCKET_FOLDER = Rule(f"a path of at most {LONGEST_FOLDER} bytes", _socket_folder)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The models to serve."""

    repository: Path = setting("PERCORE_MODEL_REPOSITORY", "models", PATH)
    """Folder that holds `NAME/VERSION/saved_model.pb`, `NAME/VERSION/model.keras` or `NAME/VERSION/model.h5`. Or a file in
    the format of TensorFlow Serving's `models.config`. Not read if a handler or an app is set."""
    handler: str = setting("PERCORE_HANDLER", "", HANDLER)
    """Your own code instead of a repository: a class with `load(self)` and `predict(self, inputs)`."""
    imports: tuple[str, ...] = setting("PERCORE_IMPORT", "", MODULES)
    """Modules of yours that are imported before a repository is loaded: they register the custom classes of Keras models."""
    tags: tuple[str, ...] = setting("PERCORE_MODEL_TAGS", "serve", TAGS)
    """If a SavedModel has several graphs, the graph with these tags is served."""
    allow_code: bool = setting("PERCORE_ALLOW_CODE", "no", YES_OR_NO)
    """Whether Keras files may hold Python functions (`Lambda` layers), which then run with all rights of percore. With `no`
    such a file is refused."""
    import_before_fork: tuple[str, ...] | None = setting("PERCORE_IMPORT_BEFORE_FORK", "", BEFORE_FORK)
    """Modules that are imported once, before the workers are forked, so that a worker that ended is replaced sooner. TensorFlow
    and Keras are among them if a repository is served. With a handler they are not, unless you name them here. `no`: each
    worker imports for itself. See [import before fork](operations/one-machine.md#import-before-fork)."""
    handler_name: str = setting("PERCORE_HANDLER_NAME", "default", NAME)
    """The name under which your own handler is called, as version 1."""
    labels: Mapping[str, Mapping[str, int]] = setting("PERCORE_MODEL_LABELS", "", LABELS)
    """Names for versions, as `digits:stable=1,digits:canary=2`; called by `/v1/models/digits/labels/stable:predict`."""
    digest: str = setting("PERCORE_MODEL_DIGEST", "", DIGEST)
    """Digest of the models. `percore fetch` refuses models with another digest. Status, metadata and the metric
    `percore_model_info` show it. Empty: every digest is accepted, and the digest that `percore fetch` has computed is
    shown."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How `percore fetch` reaches models. For credentials see [models from a store](model-sources.md)."""

    endpoint: str = setting("PERCORE_FETCH_ENDPOINT", "", ENDPOINT)
    """Address of your own store that has the interface of S3 (MinIO, Ceph), Azure or Google Cloud Storage. Empty: the address
    of the cloud."""
    ca_file: Path | None = setting("PERCORE_FETCH_CA_FILE", "", OPTIONAL_PATH)
    """Certificates of your own CA, as PEM. They are trusted besides those of the system."""
    authorization: str = setting("PERCORE_FETCH_AUTHORIZATION", "", TEXT)
    """Value of the header `Authorization` for `https://`, such as `Bearer ...`. It is a secret, and is never logged."""
    anonymous: bool = setting("PERCORE_FETCH_ANONYMOUS", "no", YES_OR_NO)
    """Whether a store is read without credentials. This works for public data."""
    connections: int = setting("PERCORE_FETCH_CONNECTIONS", "8", within(1, 32))
    """How many parts of files are fetched at the same time."""
    max_bytes: int = setting("PERCORE_FETCH_MAX_BYTES", "107374182400", within(1, 2**50))
    """The most bytes that a fetch may write. An archive counts together with the files in it."""
    max_files: int = setting("PERCORE_FETCH_MAX_FILES", "100000", within(1, 10_000_000))
    """The most files that a fetch may write."""


@dataclass(frozen=True, slots=True)
class AppSettings:
    """A WSGI app of yours instead of models."""

    target: str = setting("PERCORE_APP", "", APP)
    """The app, named as for Gunicorn: `module:app`, or `module:factory()` if a function makes it. `module` alone means
    `module:application`. Arguments are literals, as in `module:factory("cpu", debug=False)`. If an app is set, every
    request is a call, except under `/-/`. The workers import the app. The gateway does not import it, but needs the same
    value, because with an app a GET is a call too."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Addresses, the state directory, and the log."""

    host: str = setting("PERCORE_HOST", "127.0.0.1", TEXT)
    """Address of both ports. The default accepts connections only from this machine, because percore does not
    authenticate clients. Images set `0.0.0.0`."""
    port: int = setting("PERCORE_PORT", "8080", PORT)
    """Port for calls."""
    status_port: int = setting("PERCORE_STATUS_PORT", "9090", PORT)
    """Port for probes, metrics and reads. They are answered even while every worker computes."""
    state_dir: Path = setting("PERCORE_STATE_DIR", "/tmp/percore", SOCKET_FOLDER)  # noqa: S108 - its owner is checked
    """Folder for unix sockets, the locks of cores, and the gateway's spool if `PERCORE_GATEWAY_SPOOL_DIR` is not set. If
    two services run on one machine, give each its own folder and its own cores (`taskset`), because a service does not see
    the locks of the other."""
    log_level: str = setting("PERCORE_LOG_LEVEL", "info", one_of("debug", "info", "warning", "error"))
    """Lowest level of the lines that are logged. Lines are JSON, on standard error; the line of each call is `info`."""

    @property
    def report_socket(self) -> Path:
        """The unix socket on which workers report to the status server."""
        return self.state_dir / "events.sock"

    def worker_socket(self, number: int) -> Path:
        """Return the unix socket of a worker of one machine; numbers begin at 0."""
        return self.state_dir / f"worker-{number}.sock"


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """How the cores of a machine are divided between workers."""

    per_call: int = setting("PERCORE_CORES_PER_CALL", "1", within(1, 1024))
    """Cores that one call computes on. On one machine the number of workers is the number of cores divided by this, rounded
    down."""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """A timeout for each phase of a call, and bounds for bodies and the queue."""

    load_timeout: float = setting("PERCORE_LOAD_TIMEOUT", "600", SECONDS)
    """Timeout for importing TensorFlow, and again for loading and warming up all models together. If one of the two takes
    longer, the process ends."""
    body_timeout: float = setting("PERCORE_BODY_TIMEOUT", "60", SECONDS)
    """Timeout for receiving a request. A slower client gets 408."""
    queue_timeout: float = setting("PERCORE_QUEUE_TIMEOUT", "7200", SECONDS)
    """How long a call may be queued. The time begins when its last byte has arrived. A call that is queued longer gets 503
    and never runs."""
    run_timeout: float = setting("PERCORE_RUN_TIMEOUT", "3600", SECONDS)
    """Timeout for computing one call. If a call computes longer, it gets 504, and its worker is replaced."""
    answer_timeout: float = setting("PERCORE_ANSWER_TIMEOUT", "60", SECONDS)
    """Timeout for sending an answer, or the next part of a streamed answer. If a client is slower, its connection is
    closed."""
    shutdown_timeout: float = setting("PERCORE_SHUTDOWN_TIMEOUT", "3600", SECONDS)
    """How long calls may take after SIGTERM before they are killed. In a pod this is the running call. On one machine it is
    also the queued calls."""
    max_body_bytes: int = setting("PERCORE_MAX_BODY_BYTES", "33554432", within(1, 2**40))
    """Largest request body, in bytes; a larger one gets 413. JSON takes up to 40 times its size in
    memory, until its tensors are made."""
    queue_length: int = setting("PERCORE_QUEUE_LENGTH", "1024", within(1, 65535))
    """Calls that may be queued; the next one gets 429."""
    on_client_disconnect: str = setting("PERCORE_ON_CLIENT_DISCONNECT", "end", one_of("end", "end-if-worthwhile", "finish"))
    """The reaction when the client disconnects while its call computes. `end`: the worker is ended at once.
    `end-if-worthwhile`: the worker is ended only if the rest of the run timeout is longer than a load takes. `finish`: the call
    runs to its end."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, by group."""

    models: ModelSettings
    fetch: FetchSettings
    app: AppSettings
    server: ServerSettings
    cores: CoreSettings
    limits: LimitSettings


GATEWAY_PREFIX = "PERCORE_GATEWAY_"
GROUPS: dict[str, type[Any]] = {
    "models": ModelSettings,
    "fetch": FetchSettings,
    "app": AppSettings,
    "server": ServerSettings,
    "cores": CoreSettings,
    "limits": LimitSettings,
}


def _read(environ: Mapping[str, str], declared: Field[Any]) -> Any:
    key, rule = declared.metadata["key"], declared.metadata["rule"]
    text = environ.get(key, "") or declared.metadata["default"]
    try:
        return rule.parse(text)
    except (ValueError, OverflowError):
        shown = f"{key}: the value" if rule.is_secret else f"{key}={text!r}:"
        raise SettingsError(f"{shown} must be {rule.text}") from None


def read_groups(
    groups: Mapping[str, type[Any]], environ: Mapping[str, str] | None, others: Callable[[str], bool] = lambda _key: False
) -> dict[str, Any]:
    """Read every setting of the groups from ``environ`` (the process's own by default).

    An empty value counts as unset. A ``PERCORE_`` key that no process reads is probably misspelt, so it is refused too.
    ``others`` tells whether a key belongs to another process of the same machine.
    """
    environ = os.environ if environ is None else environ
    declared = {name: fields(group) for name, group in groups.items()}
    known = {each.metadata["key"] for group in declared.values() for each in group}
    for key in environ:
        if key.startswith("PERCORE_") and key not in known and not others(key):
            # Without its value, which may be a secret.
            raise SettingsError(f"{key}: no such setting; known: {', '.join(sorted(known))}")
    return {name: groups[name](**{each.name: _read(environ, each) for each in group}) for name, group in declared.items()}


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the service's settings; see ``read_groups``. The gateway reads, and checks, those with its own prefix."""
    settings = Settings(**read_groups(GROUPS, environ, others=lambda key: key.startswith(GATEWAY_PREFIX)))
    if settings.app.target and settings.models.handler:
        raise SettingsError(f"PERCORE_APP={settings.app.target!r} PERCORE_HANDLER={settings.models.handler!r}: set one of them")
    return settings


def keys() -> frozenset[str]:
    """Return the key of every setting of the service."""
    return frozenset(each.metadata["key"] for group in GROUPS.values() for each in fields(group))
