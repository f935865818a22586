"""The origin of this copy of ehm: the command that adds an extra to it, and the commit that it was made from."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

__all__ = ["build_install_command", "describe_version", "find_commit"]

_PACKAGE = Path(__file__).resolve().parent
_COMMIT_FILE = "commit.txt"
"""A file of the package that a release and an image have, as neither has git; .github/workflows writes it."""
_COMMIT_DIGITS = 12
_GIT_SECONDS = 10


def build_install_command(extras: str) -> str:
    """Return the command that adds ``extras`` (``torch`` or ``torch,export``) to the copy of ehm that runs.

    It names what this copy was installed from: a checkout, a wheel file, a repository, or an index that has ehm. pip
    records the first three in ``direct_url.json`` (PEP 610).
    """
    try:
        record = _read_record()
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return _install_checkout(_PACKAGE.parent, extras)
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


def describe_version() -> str:
    """Return the version of ehm and the commit, if it is known: ``0.2.0 (commit 0123456789ab)``."""
    commit = find_commit()
    return version("ehm") if commit is None else f"{version('ehm')} (commit {commit})"


def find_commit() -> str | None:
    """Return the first digits of the commit that this copy of ehm was made from; None if it is not known.

    In a checkout git is asked, which adds ``-dirty`` if files have changed since the commit. A copy that pip installed
    from a repository has it in pip's record, a release and an image in a file.
    """
    if (_PACKAGE.parent / ".git").exists():  # not in a parent of it, which may be a repository of the user's
        return _ask_git(_PACKAGE.parent)
    try:
        origin = json.loads(_read_record() or "{}")
    except PackageNotFoundError:
        origin = {}
    if "vcs_info" in origin:
        return str(origin["vcs_info"]["commit_id"])[:_COMMIT_DIGITS]
    file = _PACKAGE / _COMMIT_FILE
    return file.read_text(encoding="ascii").strip()[:_COMMIT_DIGITS] if file.is_file() else None


def _read_record() -> str | None:
    """Return pip's record of where ehm came from (PEP 610); None if that was an index."""
    return distribution("ehm").read_text("direct_url.json")


def _ask_git(folder: Path) -> str | None:
    """Return the commit of a checkout; None if git is not installed, or refuses the folder."""
    describe = ["describe", "--always", "--dirty", "--exclude=*", f"--abbrev={_COMMIT_DIGITS}"]
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *describe], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _install_checkout(folder: Path, extras: str, editable: bool = False) -> str:
    """Return the command for a folder that has ``pyproject.toml``; it is ``.`` if it is the current one."""
    place = "." if folder == Path.cwd() else folder
    options = "-e " if editable else ""
    return f"pip install {options}'{place}[{extras}]'"
