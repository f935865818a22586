"""The images' versions agree, and the install step of the cpu image works from what Docker would see."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
NAMES = ["cpu", "cuda", "mindspore", "npu"]
OWN = {"npu": "constraints.npu.txt", "mindspore": "constraints.mindspore.txt"}


def dockerfile(name):
    """The instructions of a Dockerfile as (word, rest), continued lines joined."""
    text = "\n".join(line for line in (DOCKER / f"Dockerfile.{name}").read_text().splitlines() if line[:1] != "#")
    return [tuple(line.split(maxsplit=1)) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def pins(path):
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines]
    return {canonicalize_name(package): version for package, version in found}


def image_pins(name):
    return pins(ROOT / "constraints.txt") | (pins(DOCKER / OWN[name]) if name in OWN else {})


def required(extras):
    """What pyproject.toml asks for with some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    queue = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    for text in queue:
        requirement = Requirement(text)
        if requirement.name == "ehm":
            yield from required(requirement.extras)
        else:
            yield requirement


def test_there_is_one_dockerfile_for_each_name():
    assert sorted(path.suffix[1:] for path in DOCKER.glob("Dockerfile.*")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_not_root_and_checks_its_health(name):
    steps = dockerfile(name)
    assert dict(steps)["ENTRYPOINT"] == '["ehm"]'
    assert dict(steps)["HEALTHCHECK"].endswith('CMD ["ehm", "doctor"]')
    defaults = dict(rest.split("=", 1) for word, rest in steps if word == "ARG")
    user = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], dict(steps)["USER"])
    assert int(user) > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_package_of_an_image_is_pinned_within_the_bounds(name):
    extras = dict(rest.split("=", 1) for word, rest in dockerfile(name) if word == "ARG")["EXTRAS"].split(",")
    found = image_pins(name)
    for requirement in required(extras):
        version = found.get(canonicalize_name(requirement.name))
        assert version, f"{name}: {requirement.name} is not pinned"
        assert version in requirement.specifier, f"{name}: {requirement}, not {version}"


@pytest.mark.parametrize("name", NAMES)
def test_an_image_installs_from_its_constraints(name):
    run = next(rest for word, rest in dockerfile(name) if word == "RUN" and "pip install" in rest)
    assert ("-c pins.txt" if name in OWN else "-c constraints.txt") in run
    assert "http" not in run
    assert OWN.get(name, "constraints.txt") in run


def test_the_images_of_ascend_say_the_versions_that_are_pinned():
    bases = {name: next(rest for word, rest in dockerfile(name) if word == "FROM") for name in OWN}
    cann = {re.search(r"cann[:-]([\d.]+)-", base)[1] for base in bases.values()}
    assert len(cann) == 1
    assert f"mindspore{image_pins('mindspore')['mindspore']}-" in bases["mindspore"]
    npu = image_pins("npu")
    assert npu["torch-npu"].startswith(npu["torch"])
    said = (DOCKER / "README.md").read_text()
    assert f"torch-npu {npu['torch-npu']} with CANN {cann.pop()}" in said


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_has_the_images_base_and_framework(name):
    row = next(line for line in (DOCKER / "README.md").read_text().splitlines() if line.startswith(f"| `ehm:{name}`"))
    base = next(rest for word, rest in dockerfile(name) if word == "FROM").split()[0]
    assert f"`{base}`" in row
    frameworks = {"npu": ["torch", "torch-npu"], "mindspore": ["mindspore"]}.get(name, ["torch"])
    for package in frameworks:
        assert f"{package} {image_pins(name)[package]}" in row


def test_compose_builds_the_images_and_mounts_what_the_readme_mounts():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert sorted(services) == NAMES
    shown = "".join(re.findall(r"```sh\n(.*?)```", (DOCKER / "README.md").read_text(), re.S))
    for name, service in services.items():
        assert service["build"] == {"context": "..", "dockerfile": f"docker/Dockerfile.{name}"}
        assert service["image"] == f"ehm:{name}"
        assert service["read_only"] is (name not in OWN)
        assert service["volumes"][:2] == ["${DATA:-./data}:/data:ro", "${RUNS:-./runs}:/home/ehm/runs"]
    for name in OWN:
        assert services[name]["devices"] == re.findall(r"--device (/dev/\w+)", shown)
        assert services[name]["volumes"][2:] == re.findall(r"-v (/(?:usr|etc)/\S+)", shown)
    gpu = services["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_the_kubernetes_job_is_yaml_and_asks_for_an_npu():
    job = yaml.safe_load(re.search(r"```yaml\n(.*?)```", (DOCKER / "README.md").read_text(), re.S)[1])
    pod = job["spec"]["template"]["spec"]
    assert pod["schedulerName"] == "volcano"
    resources = pod["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"] == {"huawei.com/Ascend910": 1}


def context(folder):
    """Copy what .dockerignore lets through: everything is out, what stands after a ! is in."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    for pattern in [line[1:] for line in lines if line[0] == "!"]:
        for path in ROOT.glob(pattern):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target)


def copied(name, source, target):
    """Do the COPY instructions of a Dockerfile that take from the context."""
    for rest in [rest for word, rest in dockerfile(name) if word == "COPY" and "--from" not in rest]:
        *sources, to = [word for word in rest.split() if not word.startswith("--")]
        for each in sources:
            path = source / each
            assert path.exists(), f"Dockerfile.{name} copies {each}, which .dockerignore keeps out"
            if to.startswith("/"):
                continue
            place = target / to / (path.name if path.is_file() else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, place, symlinks=True)
            else:
                shutil.copy(path, place)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_is_in_the_context(name, tmp_path):
    context(tmp_path / "context")
    copied(name, tmp_path / "context", tmp_path / "src")
    assert (tmp_path / "src/pyproject.toml").exists()


@pytest.mark.parametrize("name", OWN)
def test_an_images_own_pins_count_instead_of_the_others(name, tmp_path):
    context(tmp_path / "context")
    copied(name, tmp_path / "context", tmp_path / "src")
    step = next(rest for word, rest in dockerfile(name) if word == "RUN" and "awk" in rest).partition("&&")[0]
    subprocess.run(step, shell=True, cwd=tmp_path / "src", check=True, timeout=30)
    assert pins(tmp_path / "src/pins.txt") == image_pins(name)


def test_make_installs_mindspore_with_the_pins_of_its_image():
    """The same awk, in which make wants each $ twice."""
    step = next(rest for word, rest in dockerfile("mindspore") if word == "RUN" and "awk" in rest).partition(" >")[0]
    assert step.replace("$", "$$") in (ROOT / "Makefile").read_text()


def test_the_install_step_of_the_cpu_image_gives_a_working_ehm(tmp_path):
    """Its own command in a new environment, from its own files.

    The packages are not downloaded again: the environment finds those of this one, and pip still checks each against
    pyproject.toml and constraints.txt. ehm itself is built and installed anew.
    """
    context(tmp_path / "context")
    copied("cpu", tmp_path / "context", tmp_path / "src")
    opt = tmp_path / "opt"
    venv.create(opt, with_pip=False, symlinks=True)
    site = next(opt.glob("lib/python*/site-packages"))
    found = [Path(path) for path in sys.path if path.endswith("site-packages")]
    for path in found:
        for entry in path.iterdir():
            # The checkout that is linked into this environment must not stand in for the one that is to be installed.
            if "ehm" not in entry.name and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    step = next(rest for word, rest in dockerfile("cpu") if word == "RUN" and "pip install" in rest)
    extras = dict(rest.split("=", 1) for word, rest in dockerfile("cpu") if word == "ARG")["EXTRAS"]
    install = step.replace("${EXTRAS}", extras).partition("&&")[2]
    words = [word.replace("/opt/ehm", str(opt)) for word in shlex.split(install)]
    assert words[0] == str(opt / "bin/pip")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(*command, cwd):
        done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # Offline, and with the setuptools that is here.
    run(opt / "bin/python", "-m", "pip", *words[1:], "--no-index", "--no-build-isolation", cwd=tmp_path / "src")
    for part in ("configs", "backends", "deploy"):
        held = {path.relative_to(ROOT) for path in (ROOT / part).rglob("*.yaml" if part == "configs" else "*.py")}
        assert {path for path in held if not (site / "ehm" / path).exists()} == set()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(opt / "bin/python", "-c", "import ehm; print(ehm.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(opt)
    assert "train" in run(opt / "bin/ehm", "--help", cwd=elsewhere)
    assert '"works": true' in run(opt / "bin/ehm", "doctor", "--json", cwd=elsewhere)
