"""GitHub's workflows: actions are pinned, every image is built and tried, and the scripts of steps are sound."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
IMAGES = {
    f"ehm:{path.name.removeprefix('Dockerfile.').removesuffix('.Dockerfile').replace('.', '-')}": path
    for path in [*(ROOT / "docker").glob("Dockerfile.*"), *(ROOT / "docker").glob("*.Dockerfile")]
}
"""The Dockerfiles by the names that docker/README.md gives to their images."""


def read_jobs(name):
    """Return the jobs of a workflow."""
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text(encoding="utf-8"))["jobs"]


def list_steps(path):
    """Yield the steps of all jobs of a workflow that are no workflows themselves."""
    for job in read_jobs(path.name).values():
        yield from job.get("steps", ())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit_and_says_its_version(path):
    used = re.findall(r"^\s*(?:- )?uses: (.*)$", path.read_text(encoding="utf-8"), re.M)
    assert used
    for action in used:
        if action.startswith("./"):
            assert (ROOT / action).is_file()
        else:
            assert PINNED.fullmatch(action), action


def test_an_action_has_one_version_everywhere():
    text = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    versions = {}
    for name, version in re.findall(r"uses: ([\w.-]+/[\w./-]+)@(.*)", text):
        assert versions.setdefault(name, version) == version


def test_every_dockerfile_is_built():
    jobs = read_jobs("build_images.yml")
    built = jobs["build"]["strategy"]["matrix"]["include"]
    assert {f"ehm:{row['image']}": ROOT / row["dockerfile"] for row in built} == IMAGES
    joined = {row["image"]: row["architectures"].split() for row in jobs["join"]["strategy"]["matrix"]["include"]}
    for image, architectures in joined.items():
        assert architectures == [row["architecture"] for row in built if row["image"] == image]
    assert {f"ehm:{image}" for image in joined} == set(IMAGES)


@pytest.mark.parametrize("image", IMAGES)
def test_every_image_is_tried_with_what_is_in_the_repository(image, tmp_path):
    """Docker is a stand-in that keeps its arguments; it answers like ``ehm doctor --json``."""
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho \'{{"findings": []}}\'\n')
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    name = image.removeprefix("ehm:")
    subprocess.run(
        ["docker/try_image.sh", name], cwd=ROOT, env=environment, check=True, capture_output=True, timeout=30
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    commands = [call.partition(f" {image} ")[2] for call in calls]
    assert commands[0] == "--version"
    assert all("--entrypoint ehm" in call for call in calls)
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))["services"][name]
    assert all(("--read-only" in call) == compose["read_only"] for call in calls)
    mounted, _, place = re.search(r"--volume (\S+):ro", calls[0])[1].partition(":")
    for path in re.findall(rf"{place}/(\S+)", "\n".join(commands)):
        assert (Path(mounted) / path).exists()
    assert ("predict" in " ".join(commands)) == (name not in ("npu", "mindspore"))


def test_an_unknown_image_is_refused(tmp_path):
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "docker").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["docker/try_image.sh", "tpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "tpu: not one of the images" in done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_scripts_of_steps_are_sound(path):
    """Values reach a script through its environment: one put into its text could be a command."""
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for step in list_steps(path):
        script = step.get("run", "")
        assert "${{" not in script
        if shellcheck and script:
            command = [shellcheck, "--shell", "bash", "-"]
            done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, done.stdout


def test_continuous_integration_runs_what_everybody_runs():
    jobs = read_jobs("ci.yml")
    assert ".ci/run" in [step.get("run") for step in jobs["checks"]["steps"]]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    installed = jobs["install"]["strategy"]["matrix"]["include"]
    assert oldest in [row["python"] for row in installed]


def test_a_release_publishes_what_was_built_and_checked():
    jobs = read_jobs("release.yml")
    assert jobs["build"]["needs"] == "checks"
    assert "build" in jobs["publish"]["needs"]
    # no token of PyPI's anywhere: the workflow itself is the publisher
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in json.dumps(jobs)
    (upload,) = [step for step in jobs["publish"]["steps"] if "pypi-publish" in step["uses"]]
    assert upload["with"] == {"attestations": True}
