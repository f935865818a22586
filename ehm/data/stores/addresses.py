"""Addresses of files outside this machine, such as ``s3://bucket/folder``, and what must not be shown of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ehm.errors import ConfigError

__all__ = ["check_address", "hide_secrets", "is_address", "strip_scheme"]

_SCHEME = re.compile(r"(?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://")
"""A scheme, and before it those of fsspec that change what lies there."""
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_HIDDEN = "***"
_SECRETS_IN_URLS = re.compile(
    r"((?:signature|credential|security-token|access_?key(?:_?id)?|secret|token|sig|password)=)[^&\s\"'<>]+", re.I
)
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|CONNECTION_STRING|ACCOUNT_KEY|FSSPEC_\w*KEY")
_SHORTEST_SECRET = 8
"""Shorter values of variables may occur in any text."""


def is_address(source: str) -> bool:
    """Return whether ``source`` is an address with a scheme, such as ``s3://``, rather than a path of this machine."""
    return _SCHEME.match(source) is not None


def check_address(source: str, key: str = "data.source") -> None:
    """Raise ConfigError, which names ``key``, if an address holds a password or a signature.

    Addresses are written into configurations, checkpoints and reports, where no credential may appear.
    """
    remedy = (
        "it would be written to checkpoints and reports; give credentials as the store's library takes them, for "
        "example by AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_KEY (docs/data.md)"
    )
    if _PASSWORD.search(source):
        shown = _PASSWORD.sub(f"://{_HIDDEN}@", source)
        raise ConfigError(f"{key} {shown.partition('?')[0]}: leave the password out of the address: {remedy}")
    if _SECRETS_IN_URLS.search(source):
        raise ConfigError(f"{key} {source.partition('?')[0]}: leave what follows ? out of the address: {remedy}")


def hide_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return ``text``, an error message of a store, without passwords, signatures and secrets of the environment."""
    environment = os.environ if environment is None else environment
    for name, value in environment.items():
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, _HIDDEN)
    text = _SECRETS_IN_URLS.sub(rf"\g<1>{_HIDDEN}", text)
    return _PASSWORD.sub(f"://{_HIDDEN}@", text)


def strip_scheme(name: str) -> str:
    """Return the name of a file without the scheme of its address; a path is returned as it is."""
    return _SCHEME.sub("", name, count=1) if is_address(name) else name
