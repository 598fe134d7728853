"""TensorFlow Serving's ``models.config``: which models are served, from where, in which versions, by which labels.

It is protobuf's text format, so protobuf reads it. TensorFlow brings protobuf but not this schema, so the schema is built here,
with the field numbers and names of ``tensorflow_serving/config/model_server_config.proto``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]  # protobuf brings no types
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)

from percore.errors import LoadError
from percore.settings import NAME

PACKAGE = "percore.serving"
PLATFORM = "tensorflow"
_FIELDS: Mapping[str, tuple[tuple[str, int, str, bool], ...]] = {
    "ModelServerConfig": (("model_config_list", 1, "ModelConfigList", False),),
    "ModelConfigList": (("config", 1, "ModelConfig", True),),
    "ModelConfig": (
        ("name", 1, "string", False),
        ("base_path", 2, "string", False),
        ("model_type", 3, "ModelType", False),
        ("model_platform", 4, "string", False),
        ("model_version_policy", 7, "VersionPolicy", False),
        ("version_labels", 8, "Label", True),
        ("logging_config", 6, "LoggingConfig", False),
        ("logging_configs", 9, "LoggingConfig", True),
    ),
    "Label": (("key", 1, "string", False), ("value", 2, "int64", False)),
    "VersionPolicy": (("latest", 100, "Latest", False), ("all", 101, "All", False), ("specific", 102, "Specific", False)),
    "Latest": (("num_versions", 1, "uint32", False),),
    "All": (),
    "Specific": (("versions", 1, "int64", True),),
    "LoggingConfig": (("log_collector_config", 1, "LogCollector", False), ("sampling_config", 2, "Sampling", False)),
    "LogCollector": (("type", 1, "string", False), ("filename_prefix", 2, "string", False)),
    "Sampling": (("sampling_rate", 1, "double", False),),
}
"""Name, number, type, and whether it is repeated, of each field of each message."""
_MODEL_TYPES = {"MODEL_TYPE_UNSPECIFIED": 0, "TENSORFLOW": 1, "OTHER": 2}


@dataclass(frozen=True, slots=True)
class ConfiguredModel:
    """One model of the file."""

    name: str
    base_path: Path
    latest: int
    """How many of the newest versions are served; 0: the policy is not ``latest``."""
    specific: tuple[int, ...]
    """Which versions are served; empty: the policy is not ``specific``. With neither, all are."""
    labels: Mapping[str, int]

    def chosen(self, versions: list[int]) -> list[int]:
        """Return the versions to serve out of ``versions``, the oldest first; raise LoadError if a version in the file is
        missing.
        """
        if not self.specific:
            return sorted(versions)[-self.latest :]
        missing = sorted(set(self.specific) - set(versions))
        if missing:
            there = ", ".join(map(str, sorted(versions))) or "none"
            raise LoadError(f"model {self.name!r} in {self.base_path} has no version {missing[0]}; versions: {there}")
        return sorted(set(self.specific))


@cache
def _message() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=f"{PACKAGE}.proto", package=PACKAGE, syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    enum = file.enum_type.add(name="ModelType")
    for name, number in _MODEL_TYPES.items():
        enum.value.add(name=name, number=number)
    for name, declared in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in declared:
            field = message.field.add(name=field_name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in _FIELDS or kind == enum.name:
                field.type = kinds.TYPE_MESSAGE if kind in _FIELDS else kinds.TYPE_ENUM
                field.type_name = f".{PACKAGE}.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.ModelServerConfig"))


def read(path: Path) -> list[ConfiguredModel]:
    """Return the models of the file, as it lists them. Raises LoadError naming the file, the model and the rule."""
    try:
        config = text_format.Parse(path.read_bytes(), _message()())
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is no models.config of TensorFlow Serving: {error}") from error
    models = [_model(path, each) for each in config.model_config_list.config]
    names = [each.name for each in models]
    for name in names:
        if names.count(name) > 1:
            raise LoadError(f"{path}: model {name!r} is there twice")
    if not models:
        raise LoadError(f"{path}: model_config_list has no models")
    return models


def _model(path: Path, config: Any) -> ConfiguredModel:
    title = f"{path}: model {config.name!r}"
    try:
        NAME.parse(config.name)
    except ValueError:
        raise LoadError(f"{title}: its name must be {NAME.text}") from None
    if config.model_platform not in ("", PLATFORM) or config.model_type == _MODEL_TYPES["OTHER"]:
        raise LoadError(f"{title}: model_platform {config.model_platform!r}: must be {PLATFORM!r}")
    if not config.base_path or "://" in config.base_path:
        raise LoadError(f"{title}: base_path {config.base_path!r}: must be a folder of this machine; `percore fetch` makes one")
    policy = config.model_version_policy
    chosen = [name for name in ("latest", "all", "specific") if policy.HasField(name)]
    if len(chosen) > 1:
        raise LoadError(f"{title}: model_version_policy has {' and '.join(chosen)}: must have one of them")
    specific = tuple(policy.specific.versions)
    if chosen == ["specific"] and not specific:
        raise LoadError(f"{title}: model_version_policy.specific names no version")
    return ConfiguredModel(
        config.name,
        path.parent / config.base_path,
        # The default of TensorFlow Serving: the newest version.
        latest=(policy.latest.num_versions or 1) if chosen in ([], ["latest"]) else 0,
        specific=specific,
        labels={each.key: each.value for each in config.version_labels},
    )
