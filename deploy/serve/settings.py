"""What the server allows, and how it is run: one typed object, checked before anything is loaded."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ehm.deploy.bundle import Precision
from ehm.errors import ConfigError

__all__ = ["Settings"]


class Settings(BaseModel):
    """Arguments of :func:`ehm.deploy.serve.serve`, by the same names; docs/serving.md explains each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "cpu"
    precision: Precision = "float32"
    threads: int = Field(0, ge=0)
    max_batch: int = Field(8, ge=1)
    max_delay: float = Field(2.0, ge=0, le=1000)
    """Milliseconds that the first request of a batch waits for others."""
    queue: int = Field(128, ge=1)
    """Requests of a model that may wait or run; as many may be read and decoded at a time."""
    timeout: float = Field(10.0, gt=0)
    """Seconds from a request's head to its answer."""
    drain: float = Field(30.0, ge=0)
    """Seconds that a stopping server gives the requests that it has accepted."""
    max_bytes: int = Field(16 * 2**20, ge=1)
    """Of a request's body, as sent and unpacked."""
    max_pixels: int = Field(50_000_000, ge=1, le=Image.MAX_IMAGE_PIXELS)
    """Of an image, as sent and resized."""
    max_memory: int = Field(2**30, ge=1)
    """Bytes that all requests may hold together: their bodies, and their images as the model takes them."""
    poll: float = Field(1.0, gt=0)
    """Seconds between looks for replaced bundles."""
    model_control: bool = False
    """Whether clients may load and unload models."""
    log: Literal["text", "json"] = "text"

    @classmethod
    def checked(cls, **values: object) -> Settings:
        """Settings from arguments; raises ConfigError that names the first wrong one."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {values[name]}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
