"""What the server allows, and how it is run: one typed object, checked before anything is loaded."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ehm.config.loading import read_mapping
from ehm.deploy.bundle.manifest import Precision
from ehm.errors import ConfigError
from ehm.storage.reading import describe_value, shorten

__all__ = ["PIECE", "Settings"]

PIECE = 64 * 2**10
"""Bytes of an answer that are written at once: no more waits in a connection for a client that reads slowly."""


class Settings(BaseModel):
    """Arguments of :func:`ehm.deploy.serve.serve`, by the same names; docs/serving.md explains each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundles: str | Path | tuple[str | Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=2**16)
    device: str = "cpu"
    precision: Precision = "float32"
    threads: int = Field(0, ge=0)
    max_batch: int = Field(8, ge=1)
    max_delay: float = Field(0.0, ge=0, le=1000)
    """Milliseconds that the first request of a batch waits for others, if it could run at once."""
    queue: int = Field(128, ge=1)
    """Requests of a model that may wait or run; as many may be read and decoded at a time."""
    timeout: float = Field(10.0, gt=0)
    """Seconds from a request's head to its answer."""
    send_timeout: float = Field(10.0, gt=0)
    """Seconds in which a client must take the next 64 KiB of its answer, or its connection is dropped."""
    max_connections: int = Field(1000, ge=1)
    """Open connections; one more takes the place of the one that is idle for the longest time."""
    drain_delay: float = Field(5.0, ge=0)
    """Seconds after SIGTERM in which the server says that it is not ready and goes on taking requests."""
    drain: float = Field(20.0, ge=0)
    """Seconds after that, once the port is closed, for the answers to what was accepted.

    Together with the delay they are below the 30 seconds after which Kubernetes kills a container.
    """
    max_bytes: int = Field(16 * 2**20, ge=1)
    """Of a request's body."""
    max_pixels: int = Field(50_000_000, ge=1, le=Image.MAX_IMAGE_PIXELS)
    """Of an image, as sent and resized."""
    max_memory: int = Field(2**30, ge=1)
    """Bytes that all requests may hold together: bodies, images as the model takes them, unread answers."""
    poll: float = Field(1.0, gt=0)
    """Seconds between looks for replaced bundles."""
    index: str | Path | None = None
    api_key_file: str | Path | None = None
    model_control: bool = False
    """Whether clients may load and unload models."""
    log: Literal["text", "json"] = "text"

    @classmethod
    def checked(cls, config: str | Path | None = None, **given: object) -> Settings:
        """Settings from arguments, and from a YAML file for those that are None; ConfigError names what is wrong."""
        given = {name: value for name, value in given.items() if value is not None}
        try:
            return cls.model_validate(({} if config is None else _read(Path(config))) | given)
        except ValidationError as error:
            first = error.errors()[0]
            name, said = str(first["loc"][0]), f"{first['msg'][0].lower()}{first['msg'][1:]}"
            if name in given:
                raise ConfigError(f"--{name.replace('_', '-')} {shorten(str(given[name]))}: {said}") from None
            raise ConfigError(f"{config}: {name}: {said}, not {describe_value(first['input'])}") from None


def _read(config: Path) -> dict[str, Any]:
    """What the file says, by the flags' names; raises ConfigError for a key that is none of them."""
    if not config.is_file():
        raise ConfigError(f"--config {config}: no such file")
    values = {str(key).replace("-", "_"): value for key, value in read_mapping(config, str(config)).items()}
    for name in values.keys() - Settings.model_fields.keys():
        near = get_close_matches(name, Settings.model_fields, 1, 0)[0]
        raise ConfigError(f"{config}: {name}: unknown key; the nearest is {near}")
    return values
