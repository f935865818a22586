"""MindSpore's full conformance suite runs unless a commit is known since which nothing that it tests has changed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci/choose-mindspore-suite"

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def run(folder, *command, **variables):
    """Run a command in ``folder``, without the settings of whoever runs the tests."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "EHM_"))}
    environment = {**own, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, **variables}
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "tests", f"GIT_{role}_EMAIL": "tests@example.org"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)


def commit(folder, *paths):
    """Commit a change of ``paths``, and return the commit."""
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write("one more line\n")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "-q", "-m", "a change")
    return run(folder, "git", "rev-parse", "HEAD").stdout.strip()


def choose(folder, **variables):
    """Return what the script prints, and its reason."""
    done = run(folder, folder / ".ci/choose-mindspore-suite", **variables)
    return done.stdout.strip(), done.stderr


@pytest.fixture
def clone(tmp_path):
    """A fresh clone of a repository with one commit."""
    origin = tmp_path / "origin"
    (origin / ".ci").mkdir(parents=True)
    shutil.copy(SCRIPT, origin / ".ci")
    run(origin, "git", "init", "-q", "-b", "main")
    commit(origin, "README.md", "backends/mindspore/learner.py")
    run(tmp_path, "git", "clone", "-q", str(origin), "clone")
    return tmp_path / "clone"


def test_a_fresh_clone_of_the_main_branch_knows_nothing_and_runs_all(clone):
    assert choose(clone)[0] == "--full"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("docs/data.md", ""),
        ("backends/torch/learner.py", ""),
        ("backends/mindspore/models/vit.py", "--full"),
        ("backends/base.py", "--full"),
        ("backends/protocol/learner.py", "--full"),
        ("ehm/models/shapes.py", "--full"),
        ("tests/conformance/test_learner.py", "--full"),
    ],
)
def test_a_branch_is_compared_with_where_it_left_the_main_one(clone, path, expected):
    commit(clone, path)
    assert choose(clone)[0] == expected


def test_the_commit_that_passed_last_in_this_clone_counts_and_so_does_one_that_is_named(clone):
    first = commit(clone, "backends/base.py")
    second = commit(clone, "docs/data.md")
    assert choose(clone)[0] == "--full"
    assert choose(clone, EHM_PASSED_COMMIT=first)[0] == ""
    (clone / ".git/ehm-passed").write_text(second)
    assert choose(clone)[0] == ""
    (clone / "backends/mindspore/new.py").write_text("")  # not committed yet
    found, reason = choose(clone)
    assert found == "--full"
    assert "backends/mindspore/new.py has changed" in reason


def test_releases_and_commits_that_a_shallow_clone_lacks_run_all(clone):
    passed = commit(clone, "docs/data.md")
    assert choose(clone, EHM_PASSED_COMMIT="0" * 40)[0] == "--full"
    assert choose(clone, EHM_PASSED_COMMIT=passed)[0] == ""
    run(clone, "git", "tag", "v1.0")
    found, reason = choose(clone, EHM_PASSED_COMMIT=passed)
    assert found == "--full"
    assert "v1.0 is a release" in reason
