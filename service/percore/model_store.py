"""Loads the models of a repository in TensorFlow Serving's layout, or a user's own handler.

Imported in a worker, or by the arbiter before it forks. The function that needs TensorFlow imports it, so that a handler starts
without TensorFlow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from percore import model_source
from percore.errors import LoadError
from percore.handlers import Model, custom, files
from percore.model_metadata import ModelInfo
from percore.settings import NAME, Settings

logger = logging.getLogger(__name__)

LAYOUT = " or ".join(f"NAME/VERSION/{name}" for name in files.NAMES)
LARGEST_VERSION = 2**63 - 1
Labels = Mapping[str, Mapping[str, int]]
"""By the name of a model: the version of each label."""


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """One version that can be loaded."""

    info: ModelInfo
    """It has no signatures and no load time yet: they are known after the load."""
    folder: Path


def load_models(settings: Settings, threads: int) -> list[Model]:
    """Load the handler, or every version in the repository, to compute a call on ``threads`` cores.

    Call it once, in the thread that will call the models. Raises LoadError with one sentence.
    """
    models = settings.models
    if models.handler:
        check_labels([(models.handler_name, custom.VERSION)], models.labels)
        return [custom.load(models.handler, models.handler_name, labels_of(models.labels, models.handler_name, custom.VERSION))]
    found = with_digest(scan(models.repository, models.labels), models.repository, models.digest)
    # Imported here, because it takes seconds and hundreds of megabytes.
    from percore.handlers import tensorflow  # noqa: PLC0415

    tensorflow.configure(threads)
    for module in models.imports:
        custom.import_module("PERCORE_IMPORT", module)
    return [tensorflow.load(each.info, each.folder, models.tags, allow_code=models.allow_code) for each in found]


def scan(repository: Path, labels: Labels) -> list[FoundVersion]:
    """Return every version of every model in ``repository``, by name and version; read nothing but names of files.

    If it is a file, it is a ``models.config`` of TensorFlow Serving. Raises LoadError if there is no model, if a model has no
    version, or if a label names a version that is not there.
    """
    if repository.is_file():
        return _configured(repository, labels)
    found = [each for folder in _folders(repository) if _is_model(folder) for each in _versions(folder, labels)]
    if not found:
        raise LoadError(f"model repository {repository} holds no models; expected {LAYOUT}")
    check_labels([(each.info.name, each.info.version) for each in found], labels)
    return found


def _configured(config: Path, labels: Labels) -> list[FoundVersion]:
    """Return the versions that a ``models.config`` names."""
    # Imported here, because only a models.config needs protobuf.
    from percore import serving_config  # noqa: PLC0415

    models = serving_config.read(config)
    named = {each.name: {**each.labels, **labels.get(each.name, {})} for each in models}
    found: list[FoundVersion] = []
    for model in models:
        there = {each.info.version: each for each in _versions(model.base_path, named, model.name)}
        found += [there[version] for version in model.chosen(list(there))]
    check_labels([(each.info.name, each.info.version) for each in found], {**labels, **named})
    return found


def with_digest(found: list[FoundVersion], repository: Path, digest: str) -> list[FoundVersion]:
    """Add the digest that ``percore fetch`` noted, or else the one that is set. Raises LoadError if they differ."""
    source = model_source.read(repository)
    if source and digest and source.digest != digest:
        raise LoadError(
            f"PERCORE_MODEL_DIGEST={digest}: model repository {repository} has the digest {source.digest}, from {source.uri}"
        )
    known = source.digest if source else digest
    return [FoundVersion(replace(each.info, digest=known), each.folder) for each in found]


def check_labels(served: Iterable[tuple[str, int]], labels: Labels) -> None:
    """Raise LoadError if the model or the version of a label is not in ``served``."""
    known = set(served)
    for name, versions in labels.items():
        for label, version in versions.items():
            if (name, version) not in known:
                there = ", ".join(str(number) for model, number in sorted(known) if model == name) or "none"
                raise LoadError(
                    f"label {label!r} of model {name!r} names version {version}, which is not there; versions: {there}"
                )


def labels_of(labels: Labels, name: str, version: int) -> tuple[str, ...]:
    """Return the labels of one version, sorted."""
    return tuple(sorted(label for label, number in labels.get(name, {}).items() if number == version))


def _is_model(folder: Path) -> bool:
    # Volumes contain such folders: `..data` of a ConfigMap, `lost+found` of ext4.
    if folder.name.startswith(".") or folder.name == "lost+found":
        logger.debug("%s is ignored: not a model", folder)
        return False
    try:
        NAME.parse(folder.name)
    except ValueError:
        raise LoadError(f"model folder {folder}: its name must be {NAME.text}") from None
    return True


def _versions(folder: Path, labels: Labels, name: str = "") -> list[FoundVersion]:
    """Return the versions of one model, the oldest first. Its name is that of the folder, if no other is given."""
    name = name or folder.name
    versions: dict[int, FoundVersion] = {}
    for each in _folders(folder):
        number, platform = _number(each), files.platform(each)
        if number is None or platform is None:
            logger.debug(
                "%s is ignored: the name of a version folder must be a number, and it must hold %s",
                each,
                " or ".join(files.NAMES),
            )
            continue
        if number in versions:
            raise LoadError(f"model {name!r} has version {number} twice: {versions[number].folder} and {each}")
        info = ModelInfo(name, number, platform, {}, labels_of(labels, name, number))
        versions[number] = FoundVersion(info, each)
    if not versions:
        raise LoadError(f"model {name!r} in {folder} has no version that can be loaded; expected {LAYOUT}")
    return [versions[number] for number in sorted(versions)]


def _number(folder: Path) -> int | None:
    """Return the version in a folder's name. Leading zeros are allowed, as in TensorFlow Serving."""
    if not (folder.name.isascii() and folder.name.isdigit()):
        return None
    if len(folder.name.lstrip("0")) > len(str(LARGEST_VERSION)) or int(folder.name) > LARGEST_VERSION:
        raise LoadError(f"version folder {folder}: a version must be at most {LARGEST_VERSION}")
    return int(folder.name)


def _folders(parent: Path) -> Iterator[Path]:
    """Yield the folders in ``parent`` by name; log which files are ignored."""
    try:
        children = sorted(parent.iterdir())
    except OSError as error:
        raise LoadError(f"model repository folder {parent} cannot be read: {error.strerror}; expected {LAYOUT}") from error
    for child in children:
        if child.is_dir():
            yield child
        else:
            logger.debug("%s is ignored: not a folder", child)
