"""List the licences of all packages that ehm or one of its extras brings, into docs/licences.md.

    python benchmarks/licences.py

pip resolves each extra with its pins and reports the metadata of what it would install. Nothing is
installed, and nothing is downloaded from an index that serves metadata beside packages. pip 24 or newer and Linux are
needed. The table is that of the Python and the processor that run this.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pip
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/licences.md"
BEGIN = "<!-- made by make licences -->"
END = "<!-- end of what make licences made -->"
FEWEST_PIP = 24
"""First version of pip whose dry run takes metadata alone."""
OWN_PINS = {
    "npu": "docker/constraints.npu.txt",
    "mindspore": "docker/constraints.mindspore.txt",
    "serve-cuda": "docker/constraints.serve-cuda.txt",
    "serve-npu": "docker/constraints.serve-npu.txt",
    "wandb": "tests/constraints.trackers.txt",
    "mlflow": "tests/constraints.trackers.txt",
    "swanlab": "tests/constraints.trackers.txt",
}
"""Extras with pins of their own, which count instead of those of constraints.txt."""
WORK = ("dev", "docs", "release")
"""Extras that only those need who work on ehm: tools, which are listed apart."""
LONGEST = 60
"""Longer texts in the field License are licences written out."""
SPDX = {
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache license v2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "bsd license": "BSD",
    "bsd 2-clause license": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "the mit license": "MIT",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "mpl 2.0": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "psfl": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
    "licenseref-nvidia-proprietary": "proprietary",
    "licenseref-nvidia-software-license": "proprietary",
    "nvidia proprietary software": "proprietary",
    "other/proprietary license": "proprietary",
}
"""Names that packages give their licences, in small letters, and the short names for them."""


@dataclass(frozen=True)
class Package:
    """A package that pip would install."""

    name: str
    version: str
    licence: str


def main() -> None:
    """Resolve all extras and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if int(pip.__version__.split(".")[0]) < FEWEST_PIP:
        sys.exit(f"pip {pip.__version__} would download all packages: {sys.executable} -m pip install --upgrade pip")
    by_extra = {}
    for extra in list_extras():
        by_extra[extra] = resolve(extra)
        print(f"{extra or 'ehm'}: {len(by_extra[extra])} packages")
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{write_tables(by_extra)}\n{END}{after}", encoding="utf-8")


def list_extras() -> list[str]:
    """Return the names of the extras, after the empty one for ehm alone."""
    return ["", *read_project()["optional-dependencies"]]


def read_project() -> dict[str, Any]:
    """Return the table ``project`` of pyproject.toml."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def list_requirements(extra: str) -> Iterator[str]:
    """Yield what an extra and those that it names ask for; the empty extra is what ehm itself asks for."""
    project = read_project()
    texts = project["optional-dependencies"][extra] if extra else project["dependencies"]
    for text in texts:
        requirement = Requirement(text)
        if requirement.name != "ehm":
            yield text
        for named in requirement.extras if requirement.name == "ehm" else ():
            yield from list_requirements(named)


def resolve(extra: str) -> list[Package]:
    """Return all packages that an extra brings, with what they need in turn, by name."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "pins.txt")
        pins.write_text("\n".join(read_pins(extra)), encoding="utf-8")
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--disable-pip-version-check", "-c", str(pins), "--report", str(report)]
        subprocess.run([*command, *list_requirements(extra)], check=True)
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    packages = [describe(entry["metadata"]) for entry in installed]
    return sorted(packages, key=lambda package: canonicalize_name(package.name))


def read_pins(extra: str) -> list[str]:
    """Return the pins of an extra: its own, and those of constraints.txt for all other packages."""
    pins: dict[str, str] = {}
    files = [ROOT / "constraints.txt"]
    if extra in OWN_PINS:
        files.append(ROOT / OWN_PINS[extra])
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                pins[canonicalize_name(line.partition("==")[0])] = line
    return list(pins.values())


def describe(metadata: Mapping[str, Any]) -> Package:
    """Return name, version and licence from the metadata of pip's report."""
    licence = name_licence(
        metadata.get("license_expression"), metadata.get("license"), metadata.get("classifier") or []
    )
    return Package(metadata["name"], metadata["version"], licence)


def name_licence(expression: str | None, field: str | None, classifiers: list[str]) -> str:
    """Return a licence by its expression, else by classifiers, or by the field License if that says more."""
    if expression:
        return shorten(expression)
    named = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License :: ")]
    named = [text for text in named if text != "OSI Approved"]
    is_name = field is not None and 0 < len(field) <= LONGEST and "\n" not in field
    # classifiers know neither the forms of BSD nor a choice between licences
    if field and is_name and (named in ([], ["BSD License"]) or " OR " in field):
        return shorten(field)
    if named:
        return " AND ".join(dict.fromkeys(shorten(text) for text in named))
    return "not stated"


def shorten(text: str) -> str:
    """Return the short name of a licence."""
    text = text.strip().strip("\"'")
    return SPDX.get(text.lower(), text)


def write_tables(by_extra: Mapping[str, list[Package]]) -> str:
    """Return the tables in Markdown: licences by extra, all packages that run with ehm, and the tools."""
    lines = ["| extra | packages | licences |", "|---|---|---|"]
    for extra, packages in by_extra.items():
        counts = Counter(package.licence for package in packages).most_common()
        found = ", ".join(f"{licence} {count}" for licence, count in counts)
        lines.append(f"| {f'`{extra}`' if extra else '(none)'} | {len(packages)} | {found} |")
    brought: dict[Package, list[str]] = defaultdict(list)
    for extra, packages in by_extra.items():
        for package in packages:
            brought[package].append(extra)
    by_name = sorted(brought, key=lambda package: (canonicalize_name(package.name), package.version))
    running = [package for package in by_name if not set(brought[package]) <= set(WORK)]
    lines += ["", "Packages that run with ehm:", "", "| package | version | licence | extras |", "|---|---|---|---|"]
    for package in running:
        extras = [extra for extra in brought[package] if extra not in WORK]
        # what ehm itself needs comes with every extra as well
        shown = "(all)" if "" in extras else ", ".join(f"`{extra}`" for extra in extras)
        lines.append(f"| {package.name} | {package.version} | {package.licence} | {shown} |")
    lines += [
        "",
        "Tools for work on ehm, which none of these brings:",
        "",
        "| package | version | licence |",
        "|---|---|---|",
    ]
    for package in [each for each in by_name if each not in running]:
        lines.append(f"| {package.name} | {package.version} | {package.licence} |")
    text = "\n".join(lines) + "\n"
    return re.sub(r"[ \t]+\n", "\n", text)


if __name__ == "__main__":
    main()
