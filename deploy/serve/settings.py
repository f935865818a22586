"""The settings of the server: one typed object, checked before anything is loaded.

Each field is a flag of ``ehm serve``, a key of its ``--config`` file and a keyword of `ehm.serve`. The command line and
the table of docs/serving.md are made of the fields' defaults and descriptions. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from ehm.config.loading import read_mapping
from ehm.deploy.bundle.manifest import Precision
from ehm.errors import ConfigError
from ehm.storage.reading import describe_value, shorten

__all__ = ["MOST_PIXELS", "PIECE", "Settings", "add_flags", "describe_default"]

PIECE = 64 * 2**10
"""Bytes of an answer that are written at once: no more waits in a connection for a client that reads slowly."""
MOST_PIXELS = 89_478_485
"""Pillow refuses larger images, as decompression bombs (``PIL.Image.MAX_IMAGE_PIXELS``)."""

_VALUE_TYPES: dict[Any, Callable[[str], Any]] = {int: int, float: float}
"""The types that the command line converts; all others are checked as texts."""

_GROUPS = {
    "address and access": ("host", "port", "api_key_file", "model_control"),
    "network": ("device", "precision", "threads", "max_batch", "max_delay"),
    "limits": ("queue", "max_connections", "max_bytes", "max_pixels", "max_memory"),
    "times": ("timeout", "send_timeout", "drain_delay", "drain", "poll"),
    "page and log": ("index", "log"),
}
"""The settings by the group of ``--help`` that shows them; the bundles stand before all groups."""


class Settings(BaseModel):
    """The settings of a server; docs/serving.md says more about some."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundles: str | Path | tuple[str | Path, ...] = Field(
        (),
        description="folder that ehm export wrote, served by its own name or as NAME; one here or in --config at least",
    )
    host: str = Field(
        "127.0.0.1", description="address to listen on: this machine only, unless it is another, such as 0.0.0.0"
    )
    port: int = Field(8000, ge=0, lt=2**16, description="port to listen on; 0 takes a free one, which the log names")
    device: str = Field(
        "cpu",
        description="where the networks run: cpu, cuda, npu, openvino, or auto for the fastest that is installed, "
        "starts and can load the network; tensorrt for NVIDIA's compiler; om runs a bundle's model.om on an NPU; "
        "cuda:1 is one of several",
    )
    precision: Precision = Field(
        "float32", description="which network of a bundle runs: float32, or float16 or int8 if the bundle has it"
    )
    threads: int = Field(0, ge=0, description="CPU cores for all networks together; 0 stands for all cores")
    max_batch: int = Field(8, ge=1, description="images that run together at most")
    max_delay: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="milliseconds that the first request of a batch waits for others although it could run at once",
        json_schema_extra={"metavar": "MS"},
    )
    queue: int = Field(
        128,
        ge=1,
        description="requests of a model that may wait or run; as many more may be read and decoded at the same time",
    )
    timeout: float = Field(
        10.0,
        gt=0,
        description="seconds from a request's head to its answer; the head itself may take as long, "
        "or the connection is closed",
    )
    send_timeout: float = Field(
        10.0,
        gt=0,
        description="seconds in which a client must read the next 64 KiB of its answer, or its connection is dropped",
    )
    max_connections: int = Field(
        1000,
        ge=1,
        description="connections that are open at a time; one more takes the place of the one that has been idle the "
        "longest, or is refused if all have a request",
    )
    # the two waits together stay below the 30 seconds after which Kubernetes kills a container
    drain_delay: float = Field(
        5.0,
        ge=0,
        description="seconds after SIGTERM in which the server says that it is not ready and goes on taking requests",
    )
    drain: float = Field(
        20.0,
        ge=0,
        description="seconds after that, once the port is closed, to answer the requests that were accepted",
    )
    max_bytes: int = Field(
        16 * 2**20, ge=1, description="bytes of a request's body at most", json_schema_extra={"unit": "bytes"}
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        le=MOST_PIXELS,
        description="pixels of an image at most, as sent and as resized, and of all images that run together if the "
        f"graph resizes them; no more than {MOST_PIXELS:,}",
    )
    max_memory: int = Field(
        2**30,
        ge=1,
        description="bytes that all requests may hold together: bodies, images as the model takes them, and answers "
        "until their clients have read them",
        json_schema_extra={"unit": "bytes"},
    )
    poll: float = Field(1.0, gt=0, description="seconds between checks for replaced bundles")
    index: str | Path | None = Field(
        None,
        description="folder of images for the page to search, which ehm predict --out wrote",
        json_schema_extra={"metavar": "DIR"},
    )
    api_key_file: str | Path | None = Field(
        None,
        description="file with the API key; without it, the environment variable EHM_API_KEY holds the key, if it is "
        "set. The key is never an argument, which other users of the machine can read",
        json_schema_extra={"metavar": "FILE"},
    )
    model_control: bool = Field(False, description="let clients load and unload models")
    log: Literal["text", "json"] = Field("text", description="form of the log: text or json")

    @classmethod
    def from_arguments(cls, config: str | Path | None = None, **given: object) -> Settings:
        """Return settings from arguments, and from a YAML file for arguments that are None.

        Raises ConfigError that names the flag, or the file and its key, that is wrong.
        """
        # None stands for a flag that was not given
        given = {name: value for name, value in given.items() if value is not None}
        values = {} if config is None else _read_config(Path(config))
        try:
            # what the command line says goes before the file
            return cls.model_validate(values | given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            reason = f"{first['msg'][0].lower()}{first['msg'][1:]}"
            if name in given:
                raise ConfigError(f"{_flag(name)} {shorten(str(given[name]))}: {reason}") from None
            raise ConfigError(f"{config}: {name}: {reason}, not {describe_value(first['input'])}") from None


def add_flags(command: argparse.ArgumentParser) -> None:
    """Give a command a flag for each setting; a flag that is left out is left to the file, and then to the default."""
    command.add_argument(
        "bundles",
        nargs="*",
        metavar="[NAME=]DIR",
        default=argparse.SUPPRESS,
        help=_write_sentence(Settings.model_fields["bundles"]),
    )
    for title, names in _GROUPS.items():
        group = command.add_argument_group(title)
        for name in names:
            _add_flag(group, name, Settings.model_fields[name])


def _add_flag(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    text = _write_sentence(field)
    if field.annotation is bool:
        group.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=text)
    else:
        kind = _VALUE_TYPES.get(field.annotation, str)
        group.add_argument(_flag(name), type=kind, metavar=_metavar(field), help=text)


def _write_sentence(field: FieldInfo) -> str:
    """Return the description of a setting with its default as the sentence that ``--help`` prints."""
    text = field.description or ""
    default = describe_default(field)
    if default:
        text = f"{text} (default: {default})"
    return f"{text[0].upper()}{text[1:]}."


def describe_default(field: FieldInfo) -> str:
    """Return the default of a setting as help and documentation print it; empty if there is none."""
    default = field.default
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if _extra(field, "unit") == "bytes":
        if default % 2**30 == 0:
            return f"{default // 2**30} GiB"
        return f"{default // 2**20} MiB"
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, int) and default >= 10_000:
        return f"{default:,}"
    return str(default)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _metavar(field: FieldInfo) -> str | None:
    """Return the placeholder of a flag's value in the help; None stands for argparse's own, the flag's name."""
    metavar = _extra(field, "metavar")
    if metavar is None and field.annotation is float:
        return "SECONDS"
    if metavar is None and field.annotation is int:
        return "N"
    return metavar


def _extra(field: FieldInfo, key: str) -> str | None:
    extra = field.json_schema_extra
    value = extra.get(key) if isinstance(extra, dict) else None
    return value if isinstance(value, str) else None


def _read_config(config: Path) -> dict[str, Any]:
    """Return the settings of a file by their names; raises ConfigError for a key that is none of them."""
    if not config.is_file():
        raise ConfigError(f"--config {config}: no such file")
    values = {}
    for key, value in read_mapping(config, str(config)).items():
        name = str(key).replace("-", "_")
        if name not in Settings.model_fields:
            # a cutoff of 0 always finds one
            nearest = get_close_matches(name, Settings.model_fields, 1, 0)[0]
            raise ConfigError(f"{config}: {name}: unknown key; the nearest is {nearest}")
        values[name] = value
    return values
