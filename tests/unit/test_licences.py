"""docs/licences.md names every package that pyproject.toml asks for, with its licence, and every picture."""

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
PERMISSIVE = re.compile(
    r"Apache|BSD|MIT|PSF|ISC|HPND|Zlib|MPL|Unlicense|0BSD|CC0|CNRI|PIL|[Pp]ublic [Dd]omain", re.ASCII
)


@pytest.fixture(scope="module")
def licences():
    """The script that writes the tables."""
    pytest.importorskip("pip", reason="make licences runs pip")
    spec = importlib.util.spec_from_file_location("licences", ROOT / "benchmarks/licences.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def read_rows():
    """Return version and licence by package, as the page lists them; a package may have several versions."""
    rows = re.findall(r"^\| ([\w.-]+) \| (\S+) \| ([^|]+) \|", PAGE, re.M)
    return {(canonicalize_name(name), version): licence for name, version, licence in rows}


def test_every_extra_is_listed(licences):
    for extra in licences.list_extras():
        assert re.search(rf"^\| {f'`{extra}`' if extra else '.none.'} \| \d+ \|", PAGE, re.M), extra


def test_every_dependency_is_listed(licences):
    names = {name for name, _ in read_rows()}
    for extra in licences.list_extras():
        asked = {canonicalize_name(Requirement(text).name) for text in licences.list_requirements(extra)}
        assert asked - names == set(), f"{extra}: run make licences"


def test_installed_packages_have_the_licence_that_is_listed(licences):
    compared = 0
    for (name, version), licence in read_rows().items():
        try:
            found = metadata(name)
        except PackageNotFoundError:
            continue
        if found["Version"] == version:
            classifiers = found.get_all("Classifier") or []
            assert licence == licences.name_licence(found["License-Expression"], found["License"], classifiers), name
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(
    ("expression", "field", "classifiers", "expected"),
    [
        ("MIT OR Apache-2.0", "MIT", [], "MIT OR Apache-2.0"),
        (None, "Apache License 2.0", [], "Apache-2.0"),
        (None, "x" * 500, ["License :: OSI Approved :: MIT License"], "MIT"),
        (None, "BSD-3-Clause", ["License :: OSI Approved :: BSD License"], "BSD-3-Clause"),
        (None, "BSD OR GPL-2.0", ["License :: OSI Approved :: BSD License", "License :: GPL"], "BSD OR GPL-2.0"),
        (None, None, ["License :: OSI Approved", "Topic :: Software Development"], "not stated"),
        (
            None,
            "",
            ["License :: OSI Approved :: MIT License", "License :: Other/Proprietary License"],
            "MIT AND proprietary",
        ),
    ],
)
def test_a_licence_is_named(licences, expression, field, classifiers, expected):
    assert licences.name_licence(expression, field, classifiers) == expected


def test_what_is_not_permissive_is_explained():
    """Only what runs with ehm counts: the tools stand in a table of their own."""
    tables = PAGE.partition("Packages that run with ehm:")[2].partition("Tools for work on ehm")[0]
    for name, licence in re.findall(r"^\| ([\w.-]+) \| \S+ \| ([^|]+) \|", tables, re.M):
        if name != "package" and not PERMISSIVE.search(licence):
            is_of_nvidia = licence == "proprietary" and name.startswith("nvidia-")
            assert is_of_nvidia or licence == "not stated" or "CC-BY-NC" in licence, f"{name}: {licence}"


def test_every_picture_has_a_licence():
    table = PAGE.partition("| picture in `docs/images` |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([\w.]+\.(?:png|svg))`", table))
    assert named == {path.name for path in (ROOT / "docs/images").iterdir()}
