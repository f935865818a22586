"""The images' versions agree, and the install steps of two of them work from what Docker would see."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import venv
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ehm.backends.ascend import COMPILER_PACKAGES

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
NAMES = ["cpu", "cuda", "mindspore", "npu"]
SERVING = ["serve.cpu", "serve.cuda", "serve.npu"]
RUNTIMES = {"serve.cpu": "onnxruntime", "serve.cuda": "onnxruntime-gpu", "serve.npu": "onnxruntime-cann"}
ASCEND = ["mindspore", "npu"]
OWN = {name: f"constraints.{name.replace('.', '-')}.txt" for name in ("mindspore", "npu", "serve.cuda", "serve.npu")}


def dockerfile(name):
    """The instructions of a Dockerfile as (word, rest), continued lines joined."""
    path = DOCKER / (f"{name}.Dockerfile" if name in SERVING else f"Dockerfile.{name}")
    text = "\n".join(line for line in path.read_text().splitlines() if line[:1] != "#")
    return [tuple(line.split(maxsplit=1)) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def pins(path):
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines]
    return {canonicalize_name(package): version for package, version in found}


def image_pins(name):
    return pins(ROOT / "constraints.txt") | (pins(DOCKER / OWN[name]) if name in OWN else {})


def user(name):
    steps = dockerfile(name)
    defaults = dict(rest.split("=", 1) for word, rest in steps if word == "ARG")
    return re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], dict(steps)["USER"])


def required(extras):
    """Return the requirements of pyproject.toml with some extras."""
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
    assert sorted(path.stem for path in DOCKER.glob("*.Dockerfile")) == SERVING


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_trains_is_not_root_and_is_not_disturbed_by_health_checks(name):
    steps = dockerfile(name)
    assert dict(steps)["ENTRYPOINT"] == '["ehm"]'
    assert "HEALTHCHECK" not in dict(steps)  # any that says something would compute on the device that trains
    assert int(user(name)) > 0


@pytest.mark.parametrize("name", SERVING)
def test_an_image_that_serves_is_not_root_listens_and_ends_when_it_is_told(name):
    steps = dict(dockerfile(name))
    device = name.partition(".")[2]
    words = ["ehm", "serve", "--host", "0.0.0.0", "--port", "8080", "--device", device]
    assert json.loads(steps["ENTRYPOINT"]) == words  # no shell, which would keep the signal to itself
    assert (steps["EXPOSE"], steps["STOPSIGNAL"]) == ("8080", "SIGTERM")
    assert int(user(name)) > 0
    environment = dict(word.split("=", 1) for word in shlex.split(steps["ENV"]))
    assert (steps["WORKDIR"], environment["HOME"], environment["NUMBA_CACHE_DIR"]) == ("/tmp", "/tmp", "/tmp/numba")


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
@pytest.mark.parametrize("name", SERVING)
def test_a_server_is_healthy_when_it_says_that_it_is_ready(name, status, healthy):
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    command = json.loads(dict(dockerfile(name))["HEALTHCHECK"].partition("CMD")[2])
    assert command[:2] == ["python3", "-c"]
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        script = command[2].replace("127.0.0.1:8080", f"127.0.0.1:{server.server_port}")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=False)
    assert (done.returncode == 0) is healthy
    assert asked == ["/v2/health/ready"]


def test_an_image_that_serves_has_one_onnx_runtime_and_its_libraries():
    for name, package in RUNTIMES.items():
        extra = dict(rest.split("=", 1) for word, rest in dockerfile(name) if word == "ARG")["EXTRAS"]
        assert [each.name for each in required([extra]) if each.name.startswith("onnxruntime")] == [package]
    (python,) = {rest.split()[0] for word, rest in dockerfile("serve.cuda") if word == "FROM"}
    places = dict(word.split("=", 1) for word in shlex.split(dict(dockerfile("serve.cuda"))["ENV"]))["LD_LIBRARY_PATH"]
    version = re.fullmatch(r"python:(3\.\d+)-slim", python)[1]
    packages = f"/opt/ehm/lib/python{version}/site-packages/nvidia"
    assert places.split(":") == [f"{packages}/cu13/lib", f"{packages}/cudnn/lib"]
    assert "nvidia-cudnn-cu13" in image_pins("serve.cuda")


@pytest.mark.parametrize("name", [*NAMES, *SERVING])
def test_every_package_of_an_image_is_pinned_within_the_bounds(name):
    extras = dict(rest.split("=", 1) for word, rest in dockerfile(name) if word == "ARG")["EXTRAS"].split(",")
    found = image_pins(name)
    for requirement in required(extras):
        version = found.get(canonicalize_name(requirement.name))
        assert version, f"{name}: {requirement.name} is not pinned"
        assert version in requirement.specifier, f"{name}: {requirement}, not {version}"


def test_the_image_that_serves_on_ascend_has_the_packages_of_its_compiler():
    """The images of CANN 9 have them already, that of 8.5.0 has pip alone."""
    (base,) = {rest for word, rest in dockerfile("serve.npu") if word == "FROM"}
    assert "cann:8.5.0" in base
    run = next(rest for word, rest in dockerfile("serve.npu") if word == "RUN" and "pip install" in rest)
    for package in COMPILER_PACKAGES:
        assert package in run.split()
        assert canonicalize_name(package) in image_pins("serve.npu"), f"{package} is not pinned"
    assert image_pins("serve.npu")["protobuf"].startswith("3.20")


@pytest.mark.parametrize("name", [*NAMES, *SERVING])
def test_an_image_installs_from_its_constraints(name):
    run = next(rest for word, rest in dockerfile(name) if word == "RUN" and "pip install" in rest)
    assert ("-c pins.txt" if name in OWN else "-c constraints.txt") in run
    assert "http" not in run
    assert OWN.get(name, "constraints.txt") in run


def test_the_images_of_ascend_say_the_versions_that_are_pinned():
    bases = {name: next(rest for word, rest in dockerfile(name) if word == "FROM") for name in ASCEND}
    cann = {re.search(r"cann[:-]([\d.]+)-", base)[1] for base in bases.values()}
    assert len(cann) == 1
    assert f"mindspore{image_pins('mindspore')['mindspore']}-" in bases["mindspore"]
    npu = image_pins("npu")
    assert npu["torch-npu"].startswith(npu["torch"])
    said = (DOCKER / "README.md").read_text()
    assert f"torch-npu {npu['torch-npu']} with CANN {cann.pop()}" in said
    served = next(rest for word, rest in dockerfile("serve.npu") if word == "FROM")
    cann = re.search(r"cann:([\d.]+)-", served)[1]
    assert f"onnxruntime-cann {image_pins('serve.npu')['onnxruntime-cann']} was built with CANN {cann}" in said


@pytest.mark.parametrize("name", [*NAMES, *SERVING])
def test_the_readme_has_the_images_base_and_framework(name):
    rows = (DOCKER / "README.md").read_text().splitlines()
    row = next(line for line in rows if line.startswith(f"| `ehm:{name.replace('.', '-')}`"))
    base = next(rest for word, rest in dockerfile(name) if word == "FROM").split()[0]
    assert f"`{base}`" in row
    frameworks = {"npu": ["torch", "torch-npu"], "mindspore": ["mindspore"]}.get(name, [RUNTIMES.get(name, "torch")])
    for package in frameworks:
        assert f"{package} {image_pins(name)[package]}" in row


def test_compose_builds_the_images_and_mounts_what_the_readme_mounts():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    served = {name: services.pop(name.replace(".", "-")) for name in SERVING}
    assert sorted(services) == NAMES
    shown = "".join(re.findall(r"```sh\n(.*?)```", (DOCKER / "README.md").read_text(), re.S))
    for name, service in services.items():
        assert service["build"] == {"context": "..", "dockerfile": f"docker/Dockerfile.{name}"}
        assert service["image"] == f"ehm:{name}"
        assert service["read_only"] is (name not in ASCEND)
        assert service["volumes"][:2] == ["${DATA:-./data}:/data:ro", "${RUNS:-./runs}:/home/ehm/runs"]
    for name in ASCEND:
        assert services[name]["devices"] == re.findall(r"--device (/dev/\w+)", shown)
        assert services[name]["volumes"][2:] == re.findall(r"-v (/(?:usr|etc)/\S+)", shown)
    for name, service in served.items():
        assert service["build"] == {"context": "..", "dockerfile": f"docker/{name}.Dockerfile"}
        assert service["image"] == f"ehm:{name.replace('.', '-')}"
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert [place.partition(":")[0] for place in service["tmpfs"]] == ["/tmp"]
        assert service["volumes"][0] == "${MODELS:-./models}:/models:ro"
        assert service["ports"] == ["${PORT:-8080}:8080"]
    for key in ("devices", "group_add"):
        assert served["serve.npu"][key] == services["npu"][key]
    assert served["serve.npu"]["volumes"][1:] == services["npu"]["volumes"][2:]
    for service in (services["cuda"], served["serve.cuda"]):
        gpu = service["deploy"]["resources"]["reservations"]["devices"]
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
            assert path.exists(), f"the Dockerfile of {name} copies {each}, which .dockerignore keeps out"
            if to.startswith("/"):
                continue
            place = target / to / (path.name if path.is_file() else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, place, symlinks=True)
            else:
                shutil.copy(path, place)


@pytest.mark.parametrize("name", [*NAMES, *SERVING])
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


def installed(name, folder, takes):
    """Run the install step of an image in a new environment, from the image's own files.

    The packages are not downloaded again: the environment finds those of this one whose entries of site-packages
    ``takes`` lets through, and pip still checks each against pyproject.toml and constraints.txt. ehm itself is built
    and installed anew. Returns the environment and a function that runs commands outside this one.
    """
    context(folder / "context")
    copied(name, folder / "context", folder / "src")
    opt = folder / "opt"
    venv.create(opt, with_pip=False, symlinks=True)
    site = next(opt.glob("lib/python*/site-packages"))
    for path in [Path(path) for path in sys.path if path.endswith("site-packages")]:
        for entry in path.iterdir():
            # The checkout that is linked into this environment must not stand in for the one that is to be installed.
            if "ehm" not in entry.name and not (site / entry.name).exists() and takes(entry.name):
                (site / entry.name).symlink_to(entry)
    step = next(rest for word, rest in dockerfile(name) if word == "RUN" and "pip install" in rest)
    extras = dict(rest.split("=", 1) for word, rest in dockerfile(name) if word == "ARG")["EXTRAS"]
    install = step.replace("${EXTRAS}", extras).partition("&&")[2]
    words = [word.replace("/opt/ehm", str(opt)) for word in shlex.split(install)]
    assert words[0] == str(opt / "bin/pip")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(*command, cwd):
        done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # Offline, and with the setuptools that is here.
    run(opt / "bin/python", "-m", "pip", *words[1:], "--no-index", "--no-build-isolation", cwd=folder / "src")
    return opt, run


def test_the_install_step_of_the_cpu_image_gives_a_working_ehm(tmp_path):
    opt, run = installed("cpu", tmp_path, lambda entry: True)
    site = next(opt.glob("lib/python*/site-packages"))
    for part in ("configs", "backends", "deploy"):
        held = {path.relative_to(ROOT) for path in (ROOT / part).rglob("*.yaml" if part == "configs" else "*.py")}
        assert {path for path in held if not (site / "ehm" / path).exists()} == set()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(opt / "bin/python", "-c", "import ehm; print(ehm.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(opt)
    assert "train" in run(opt / "bin/ehm", "--help", cwd=elsewhere)
    assert '"works": true' in run(opt / "bin/ehm", "doctor", "--json", cwd=elsewhere)


def brought(texts, found):
    """The entries of site-packages that hold what requirements ask for, and what those ask for in turn."""
    for text in texts:
        requirement = Requirement(text)
        wanted = [{"extra": extra} for extra in (requirement.extras or {""})]
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        distribution = importlib.metadata.distribution(requirement.name)
        found[key] = {file.parts[0] for file in distribution.files if file.parts[0] != ".."}
        asked = [Requirement(each) for each in distribution.requires or ()]
        brought([str(r) for r in asked if not r.marker or any(r.marker.evaluate(extra) for extra in wanted)], found)
    return found


def test_the_install_step_of_the_serving_image_needs_no_framework(tmp_path):
    """Only what ehm[serve] asks for is there, and what is to build and install it: nothing of torch, onnx or SciPy."""
    texts = [str(each) for each in required(["serve"])]
    found = brought([*texts, "pip", "setuptools"], {})
    entries = set().union(*found.values())
    assert not entries & {"torch", "torchvision", "timm", "onnx", "mindspore", "scipy", "sklearn"}
    opt, run = installed("serve.cpu", tmp_path, lambda entry: entry in entries)
    code = """
import importlib, pkgutil, onnxruntime, ehm.deploy
for module in pkgutil.walk_packages(ehm.deploy.__path__, "ehm.deploy.", onerror=lambda name: None):
    if not module.name.startswith("ehm.deploy.export"):
        print(importlib.import_module(module.name).__name__)
"""
    assert "ehm.deploy.predict.predictor" in run(opt / "bin/python", "-c", code, cwd=tmp_path).split()
    assert run(opt / "bin/ehm", "--version", cwd=tmp_path).startswith("ehm ")
