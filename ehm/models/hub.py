"""Files of the Hugging Face Hub: from the cache, or downloaded if the hub answers; ``HF_ENDPOINT`` names a mirror."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ehm.errors import BackendError, CheckpointError

__all__ = ["HUB", "download_repository", "go_offline_if_unreachable"]

HUB = "hf:"
"""Beginning of a name in ``model.init`` that is a repository of the hub."""

_PATIENCE = 5
"""Seconds for the hub to answer."""
_SETTINGS = "*.json"
_WEIGHTS = (
    ("model*.safetensors", "open_clip_model*.safetensors"),
    ("pytorch_model*.bin", "open_clip_pytorch_model*.bin"),
)
"""Patterns of files of weights; many repositories have the same ones in both forms, and the first is enough."""


def download_repository(named: str, origin: str | None = None) -> Path:
    """Return the folder of the repository ``named`` "hf:OWNER/NAME", or "hf:OWNER/NAME@REVISION".

    Raises CheckpointError if it is neither in the cache nor to be had from the hub, BackendError if the package that
    downloads is missing. ``origin`` is the value of model.init that errors name, if it is another than ``named``.
    """
    origin = origin or named
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise BackendError(
            f"model.init {origin}: huggingface_hub downloads it, and is not installed; pip install huggingface_hub, or "
            "give the folder of the files"
        ) from None
    name, _, revision = named.removeprefix(HUB).partition("@")
    try:
        with go_offline_if_unreachable():
            for patterns in _WEIGHTS:
                wanted = [_SETTINGS, *patterns]
                folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
                if any(list(folder.glob(pattern)) for pattern in patterns):
                    break
            return folder
    except HFValidationError:
        reason = "is no name of a repository, such as facebook/dinov2-small"
    except LocalEntryNotFoundError:
        reason = "is not in the cache, and the hub does not answer; HF_ENDPOINT names a mirror"
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = f"the hub answers {status} for it; a name that is right may need a login (hf auth login)"
    except OSError as error:
        reason = f"cannot be downloaded: {error}"
    raise CheckpointError(f"model.init {origin}: {reason}")


@contextmanager
def go_offline_if_unreachable() -> Iterator[None]:
    """Let downloads from a hub that does not answer fail at once for a while, unless the file is in the cache.

    huggingface_hub 2.4 tries six times for each name that a file of weights may have, for a minute and with a warning
    each, and has an argument against that in none of the functions that timm calls; its offline mode (HF_HUB_OFFLINE)
    is a constant. This can go when it has one.
    """
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # those of its HTTP library, which another version of it changes
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
