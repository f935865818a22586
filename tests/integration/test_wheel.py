"""The wheel holds the tree, and works in an environment that has what it declares and nothing else.

The environments here are new and empty. Instead of downloading gigabytes again, the distributions that the wheel's own
metadata asks for are linked in from the environment that runs the tests, one by one: what is not declared is not there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LINKS = {"backends": "../backends", "deploy": "../deploy", "configs": "../configs"}
TINY = ["encoder=vit_tiny", "image_size=32", "patch_size=8", "model.depth=2", "model.decoder_width=32"]
TINY += ["model.decoder_depth=1", "model.decoder_heads=2", "mask.blocks=2", "optim.batch_size=4", "data.workers=0"]


def run(*command, status=0, cwd=None):
    """Run a command with nothing of this environment's variables that Python reads; its output."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == status, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def closure(requirements, extras=()):
    """The installed distributions that requirements ask for, with theirs, by name."""
    found = {}
    queue = [(Requirement(text), set(extras)) for text in requirements]
    while queue:
        requirement, chosen = queue.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *chosen}):
            continue
        if requirement.name == "ehm":  # one extra naming another
            queue += [(Requirement(text), set(requirement.extras)) for text in requirements]
            continue
        key = (requirement.name, frozenset(requirement.extras))
        if key not in found:
            found[key] = distribution(requirement.name)
            assert found[key].version in requirement.specifier, f"{requirement} is not met by {found[key].version}"
            queue += [(Requirement(text), set(requirement.extras)) for text in found[key].requires or ()]
    return found.values()


def environment(folder, wheel, extras=()):
    """A new virtual environment with the wheel and what it declares; its folder of commands."""
    venv.create(folder, with_pip=False, symlinks=True)
    run(sys.executable, "-m", "pip", "--python", folder, "install", "-q", "--no-deps", "--no-index", wheel)
    site = next(folder.glob("lib/python*/site-packages"))
    metadata = json.loads(
        run(
            folder / "bin/python",
            "-c",
            "import json; from importlib.metadata import requires; print(json.dumps(requires('ehm')))",
        )
    )
    for found in closure(metadata, extras):
        for name in {file.parts[0] for file in found.files} - {".."}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(found.locate_file(name))))
    return folder / "bin"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The checkout without what was built or trained in it."""
    copy = tmp_path_factory.mktemp("tree") / "ehm"
    names = ["ehm", "backends", "deploy", "configs", "tests", "pyproject.toml", "README.md", "LICENSE"]
    copy.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def core(built, tmp_path_factory):
    """Commands of an environment with the core's dependencies: no framework."""
    return environment(tmp_path_factory.mktemp("core") / "venv", built[1])


def package_files():
    """List the files that the wheel must hold, read from the real folders and not through the links."""
    files = {path.relative_to(ROOT) for path in (ROOT / "ehm").rglob("*.py")} | {Path("ehm/py.typed")}
    for name in LINKS:
        files = {path for path in files if path.parts[1] != name}
        suffix = "*.yaml" if name == "configs" else "*.py"
        files |= {Path("ehm") / path.relative_to(ROOT) for path in (ROOT / name).rglob(suffix)}
    files.add(Path("ehm/backends/torch/diagnosis/npu_operators.txt"))
    files.add(Path("ehm/verification/curve.json"))
    files |= {Path("ehm") / path.relative_to(ROOT) for path in (ROOT / "deploy/serve/static").iterdir()}
    files |= {Path("ehm") / path.relative_to(ROOT) for path in (ROOT / "deploy/launch/templates").iterdir()}
    files |= {path.relative_to(ROOT) for path in (ROOT / "ehm/report/templates").iterdir()}
    return {str(path) for path in files if "__pycache__" not in path.parts}


def test_the_links_are_relative_and_point_at_the_folders():
    assert {name: os.readlink(ROOT / "ehm" / name) for name in LINKS} == LINKS


def test_the_wheel_holds_the_tree_and_nothing_else(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    packed = {name for name in names if not name.startswith("ehm-")}
    assert packed == package_files()
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_holds_the_package_once_and_as_files(built):
    with tarfile.open(built[0]) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert package_files() <= names
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert not {name.partition("/")[0] for name in names} & {"backends", "deploy", "configs"}


def test_a_wheel_straight_from_the_tree_is_the_same(tree, built, tmp_path):
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, tree)
    straight = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    from_sdist = zipfile.ZipFile(built[1])
    assert {i.filename: i.CRC for i in straight.infolist()} == {i.filename: i.CRC for i in from_sdist.infolist()}


def test_the_core_runs_without_a_framework(core, tmp_path):
    code = "import ehm.cli, ehm.config, ehm.data, ehm.masking, ehm.training.pretrain, ehm, sys; print(ehm.__file__)"
    where = run(core / "python", "-c", code, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(core.parent)
    absent = "import importlib.util as u; print([n for n in ('torch', 'timm', 'onnx', 'scipy') if u.find_spec(n)])"
    assert run(core / "python", "-c", absent, cwd=tmp_path).strip() == "[]"
    plugins = "from importlib.metadata import entry_points as e; print(*(p.value for p in e(group='pytest11')))"
    assert "ehm.pytest_plugin" in run(core / "python", "-c", plugins, cwd=tmp_path).split()
    assert "train" in run(core / "ehm", "--help", cwd=tmp_path)
    assert "none-any.whl[torch]'" in run(core / "ehm", "doctor", status=1, cwd=tmp_path)


def test_the_core_makes_masks(core, tmp_path):
    code = """
import numpy as np
from ehm.masking import build_hierarchy, hierarchical_mask
rng = np.random.default_rng(0)
similarity = rng.random((2, 36, 36)).astype(np.float32)
tree = build_hierarchy((similarity + similarity.swapaxes(1, 2)) / 2)
print(hierarchical_mask(tree, 0.5, 0.75, rng).sum(axis=1).tolist())
"""
    assert run(core / "python", "-W", "error", "-c", code, cwd=tmp_path).strip() == "[27, 27]"


def test_training_without_a_framework_is_one_clear_sentence(core, tmp_path):
    said = run(core / "ehm", "train", "--device", "cpu", "--out", "run", status=1, cwd=tmp_path).strip()
    assert "none-any.whl[torch]'" in said
    assert "Traceback" not in said


def test_exporting_without_its_extra_names_both_ways_and_measuring_gets_as_far_as_the_bundle(core, tmp_path):
    said = run(core / "ehm", "export", "run", status=1, cwd=tmp_path)
    assert re.search(r"any\.whl\[torch,export\]' or pip install '.*any\.whl\[mindspore,export\]'", said)
    assert said.count("\n") == 1
    said = run(core / "ehm", "bench", "export", "bundle", status=1, cwd=tmp_path)
    assert said.strip() == "ehm bench: bundle: not a bundle: it has no manifest.json; ehm export writes one"


def test_serving_needs_its_extra_and_no_framework(core, built, tmp_path):
    said = run(core / "ehm", "serve", "bundle", status=1, cwd=tmp_path)
    assert "none-any.whl[serve]'" in said
    assert said.count("\n") == 1
    commands = environment(tmp_path / "venv", built[1], extras=("serve",))
    said = run(commands / "ehm", "serve", "bundle", status=1, cwd=tmp_path)
    assert said.strip() == "ehm serve: bundle: not a bundle: it has no manifest.json; ehm export writes one"


def test_from_another_folder_it_trains_two_steps(built, tmp_path):
    commands = environment(tmp_path / "venv", built[1], extras=("torch", "elpv"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = run(commands / "ehm", "doctor", "--json", cwd=elsewhere)
    assert json.loads(said)["works"] is True
    tiny = [part for setting in [*TINY, "run.max_steps=2"] for part in ("--set", setting)]
    said = run(
        commands / "ehm", "train", "--config", "elpv/pretrain", "--device", "cpu", "--out", "run", *tiny, cwd=elsewhere
    )
    assert "run" in said
    assert [path.name for path in elsewhere.glob("run/checkpoints/step-*")] == ["step-00000002"]
    assert (elsewhere / "run" / "report.html").is_file()
    assert "ehm" not in {path.name for path in elsewhere.iterdir()}
