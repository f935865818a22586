"""The promises of the package: its public names, its version, and the Python of its guide to masks."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import ehm
from ehm.deploy.bundle import manifest
from ehm.storage import checkpoint

ROOT = Path(__file__).parents[2]
PACKAGES = ["ehm.masking", "ehm.data", "ehm.backends", "ehm.deploy", "ehm.tasks", "ehm.analysis"]
MODULES = [
    "ehm.config",
    "ehm.errors",
    "ehm.config.encoders",
    "ehm.storage.checkpoint",
    "ehm.training.schedule",
    "ehm.doctor",
]


def public(module):
    """Names that a package defines, or takes from its own modules, and does not hide with an underscore."""
    names = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom) and (node.level or f"{node.module}.".startswith(f"{module.__name__}.")):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_shows_exactly_what_it_lists(name):
    module = importlib.import_module(name)
    assert public(module) == set(getattr(module, "__all__", ()))


@pytest.mark.parametrize("name", [*PACKAGES, *MODULES, "ehm"])
def test_what_is_listed_exists_and_is_explained(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for each in getattr(module, "__all__", ()):
        value = getattr(module, each)
        assert not inspect.isfunction(value) or value.__doc__, f"{name}.{each} has no docstring"


def test_the_functions_of_the_commands_are_at_the_top():
    assert set(ehm.__all__) == {"__version__", *ehm._MODULES}
    for name, home in ehm._MODULES.items():
        assert getattr(ehm, name) is getattr(importlib.import_module(home), name)


def test_dir_lists_what_is_loaded_on_first_use():
    code = "import sys, ehm; print(*dir(ehm)); assert 'ehm.training.pretrain' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ehm.__all__) <= set(done.stdout.split())


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ehm' has no attribute 'trian'"):
        _ = ehm.trian


def test_the_version_has_one_source():
    assert f'\nversion = "{ehm.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    versions = re.findall(r"^## \[([^]]+)\](?: - ([\d-]+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    version, day = versions[1]
    assert version == ehm.__version__
    assert f"\nversion: {version}\ndate-released: {day}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_guide_to_what_is_stable_names_the_formats():
    text = (ROOT / "docs/stability.md").read_text(encoding="utf-8")
    assert re.search(r"\| checkpoints \| format (\d+):", text)[1] == str(checkpoint.FORMAT)
    assert re.search(r"\| bundles \| format (\d+):", text)[1] == str(manifest.FORMAT)


def test_the_page_of_extras_has_them_all():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    rows = re.findall(r"^\|(.*?)\|", (ROOT / "docs/extras.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`([a-z0-9-]+)`", " ".join(rows))) == set(extras) - {"http"}  # a part of serve and its like


def python_of_the_guide_to_masks():
    """The Python blocks of docs/masking.md, each with the line it begins at."""
    text = (ROOT / "docs/masking.md").read_text(encoding="utf-8")
    return [
        (text[: match.start()].count("\n") + 2, match[1]) for match in re.finditer(r"```python\n(.*?)```", text, re.S)
    ]


@pytest.mark.parametrize(
    ("line", "code"),
    python_of_the_guide_to_masks(),
    ids=lambda value: f"line {value}" if isinstance(value, int) else "",
)
def test_the_python_of_the_guide_to_masks_runs_and_prints_what_it_says(line, code, tmp_path):
    said = [comment.strip() for comment in re.findall(r"#\s*prints (.*)", code)]
    assert said, f"the block at line {line} of docs/masking.md does not say what it prints"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == said


LINKED = [*sorted(path.name for path in ROOT.glob("*.md")), "docker/README.md"]
LINKED += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", LINKED)
def test_links_between_files_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.S)
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if not target.startswith("http")]
    missing = [target for target in targets if not ((ROOT / path).parent / target).exists()]
    assert not missing
