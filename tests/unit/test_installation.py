"""The command that adds an extra to ehm names what this copy was installed from; nothing else does."""

import json
import re
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ehm import installation
from ehm.installation import build_install_command

ROOT = Path(__file__).parents[2]


class Installed:
    """A distribution whose record of pip's is ``origin``."""

    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, ["ehm[torch,export]"]),
        ({"url": "file:///home/a%20b/ehm", "dir_info": {}}, ["/home/a b/ehm[torch,export]"]),
        ({"url": "file:///src/ehm", "dir_info": {"editable": True}}, ["-e", "/src/ehm[torch,export]"]),
        (
            {"url": "file:///ehm-0.1.0-py3-none-any.whl", "archive_info": {}},
            ["/ehm-0.1.0-py3-none-any.whl[torch,export]"],
        ),
        ({"url": "https://host/ehm.whl", "archive_info": {}}, ["ehm[torch,export] @ https://host/ehm.whl"]),
        (
            {"url": "https://host/ehm.git", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}},
            ["ehm[torch,export] @ git+https://host/ehm.git@0123abc"],
        ),
    ],
)
def test_the_command_names_what_this_copy_came_from(monkeypatch, origin, expected):
    monkeypatch.setattr(installation, "distribution", lambda name: Installed(origin))
    words = shlex.split(build_install_command("torch,export"))
    assert words == ["pip", "install", *expected]
    if words[-1].startswith("ehm["):
        assert Requirement(words[-1]).extras == {"torch", "export"}


def test_in_the_checkout_itself_it_is_short(monkeypatch, tmp_path):
    origin = {"url": tmp_path.as_uri(), "dir_info": {}}
    monkeypatch.setattr(installation, "distribution", lambda name: Installed(origin))
    monkeypatch.chdir(tmp_path)
    assert build_install_command("torch") == "pip install '.[torch]'"


def test_a_checkout_that_was_not_installed_is_named(monkeypatch):
    def find_none(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "distribution", find_none)
    monkeypatch.chdir("/")
    assert build_install_command("torch") == f"pip install '{ROOT}[torch]'"


def test_no_other_place_says_where_ehm_comes_from():
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for folder in ("ehm", "backends", "deploy", "configs", "docker"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".html", ".j2")]
    said = [path for path in files if re.search(r"install (-\w )?'?ehm\b", path.read_text(encoding="utf-8"))]
    assert [path.resolve() for path in said if path.name != "installation.py"] == []
