"""The log: one line a request and one for whatever else happens, as text or as JSON objects, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import datetime, timezone
from typing import Any, Literal

__all__ = ["OncePerSecond", "configure_logging"]


def configure_logging(form: Literal["text", "json"]) -> None:
    """Send the records of ehm, uvicorn and asyncio to standard error in that form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    for name, level in (("ehm", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


class OncePerSecond:
    """A log of warnings that may come by the thousand: one a second, and the next one says how many were left out."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._logged = -1.0
        self._left_out = 0

    def warning(self, text: str, *arguments: object) -> None:
        """Log a warning, unless the last one was logged less than a second ago."""
        now = time.monotonic()
        if 0 <= self._logged > now - 1:
            self._left_out += 1
            return
        if self._left_out:
            text += f" ({self._left_out} more since the last such line)"
        self._logger.warning(text, *arguments)
        self._logged = now
        self._left_out = 0


def _read_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a request, which `Edge` hands over."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _format_time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _format_time(record), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= _read_fields(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # what a client sent stands in quotes, so that it can neither end a line nor look like another field
        parts = [_format_time(record), record.levelname.lower(), record.getMessage()]
        for key, value in _read_fields(record).items():
            if value not in ("", 0):
                parts.append(f"{key}={json.dumps(value)}")
        line = " ".join(parts)
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line
