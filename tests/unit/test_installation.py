"""The origin of this copy of ehm is found: the command that adds an extra to it, and its commit."""

import json
import re
import shlex
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ehm
from ehm import installation
from ehm.cli import main
from ehm.installation import build_install_command, describe_version, find_commit

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


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """An installed package, at first without any hint at its commit."""
    package = tmp_path / "site" / "ehm"
    package.mkdir(parents=True)
    monkeypatch.setattr(installation, "_PACKAGE", package)
    monkeypatch.setattr(installation, "distribution", lambda name: Installed(None))
    return package


def git(folder, *words):
    """Run git in a folder; its output."""
    words = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.invalid", *words]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def test_in_a_checkout_git_knows_the_commit_and_changes(copy):
    checkout = copy.parent
    git(checkout, "init", "-q")
    (copy / "cli.py").write_text("a = 1")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    git(checkout, "tag", "v9")
    digits = git(checkout, "rev-parse", "HEAD")[:12]
    assert find_commit() == digits
    (copy / "commit.txt").write_text("0" * 40)  # left by a build
    assert find_commit() == digits
    (copy / "cli.py").write_text("a = 2")
    assert describe_version() == f"{ehm.__version__} (commit {digits}-dirty)"


def test_a_repository_around_an_installed_copy_is_not_its_own(copy):
    git(copy.parents[1], "init", "-q")
    git(copy.parents[1], "commit", "-q", "--allow-empty", "-m", "of the user's")
    assert find_commit() is None
    assert describe_version() == ehm.__version__


def test_a_copy_from_a_repository_has_the_commit_in_pips_record(copy, monkeypatch):
    origin = {
        "url": "https://host/ehm.git",
        "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef" * 2 + "01234567"},
    }
    monkeypatch.setattr(installation, "distribution", lambda name: Installed(origin))
    assert find_commit() == "0123456789ab"


def test_a_release_has_the_commit_in_a_file(copy, monkeypatch, capsys):
    (copy / "commit.txt").write_text("fedcba9876543210" * 2 + "fedcba98\n")
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"ehm {ehm.__version__} (commit fedcba987654)\n"


def test_without_git_the_version_stands_alone(copy, monkeypatch):
    (copy.parent / ".git").mkdir()  # nothing that git takes for a repository
    assert find_commit() is None
    monkeypatch.setenv("PATH", "")
    assert describe_version() == ehm.__version__
