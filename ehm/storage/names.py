"""Names that users gave to files, folders and classes, as text that every file and every output can hold."""

from __future__ import annotations

import re
from pathlib import Path

from ehm.errors import ConfigError

__all__ = ["escape_undecodable", "make_dns_label", "refuse_undecodable"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_FIRST_BYTE = 0xDC00
"""Python reads a byte b of a file name that is no UTF-8 as the character U+DC00 + b (PEP 383)."""


def escape_undecodable(text: str) -> str:
    r"""Return ``text`` as valid Unicode: bytes that are no UTF-8 become ``\xe9``, other lone surrogates ``\ud800``."""
    return _SURROGATE.sub(_escape_surrogate, text)


def refuse_undecodable(path: Path, library: str) -> None:
    """Raise ConfigError if ``path`` is no UTF-8, for ``library``, which takes no other paths."""
    if escape_undecodable(str(path)) != str(path):
        raise ConfigError(
            f"{escape_undecodable(str(path))}: {library} opens paths in UTF-8 only, and this is not UTF-8; "
            "rename the folder, or give a link to it"
        )


def make_dns_label(text: str, longest: int) -> str:
    """Return ``text`` as Kubernetes takes it for a name: small letters, digits and hyphens, a letter first."""
    allowed = re.sub(r"[^a-z0-9]+", "-", text.lower())
    if not allowed[:1].isalpha():
        allowed = f"ehm-{allowed.lstrip('-')}"
    return allowed[:longest].rstrip("-")


def _escape_surrogate(match: re.Match[str]) -> str:
    """Return the escape of one lone surrogate: that of the byte which it stands for, if it stands for one."""
    code = ord(match[0])
    if 0x80 <= code - _FIRST_BYTE <= 0xFF:
        return f"\\x{code - _FIRST_BYTE:02x}"
    return f"\\u{code:04x}"
