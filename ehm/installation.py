"""The command that installs an extra of ehm beside the copy that runs."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

__all__ = ["build_install_command"]


def build_install_command(extras: str) -> str:
    """Return the command that adds ``extras`` (``torch`` or ``torch,export``) to the copy of ehm that runs.

    It names what this copy was installed from: a checkout, a wheel file, a repository, or an index that has ehm. pip
    records the first three in ``direct_url.json`` (PEP 610).
    """
    try:
        record = distribution("ehm").read_text("direct_url.json")
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return _install_checkout(Path(__file__).resolve().parents[1], extras)
    if record is None:
        return f"pip install 'ehm[{extras}]'"
    origin: dict[str, Any] = json.loads(record)
    url = origin["url"]
    if "vcs_info" in origin:
        system, commit = origin["vcs_info"]["vcs"], origin["vcs_info"]["commit_id"]
        return f"pip install 'ehm[{extras}] @ {system}+{url}@{commit}'"
    if urlsplit(url).scheme != "file":
        return f"pip install 'ehm[{extras}] @ {url}'"
    path = Path(url2pathname(urlsplit(url).path))
    if "dir_info" in origin:
        return _install_checkout(path, extras, origin["dir_info"].get("editable", False))
    return f"pip install '{path}[{extras}]'"


def _install_checkout(folder: Path, extras: str, editable: bool = False) -> str:
    """Return the command for a folder that has ``pyproject.toml``; it is ``.`` if it is the current one."""
    place = "." if folder == Path.cwd() else folder
    options = "-e " if editable else ""
    return f"pip install {options}'{place}[{extras}]'"
