"""Commands of a shell, by program: those of this repository are checked, those of others are known by name."""

import re
from fnmatch import fnmatch

import tomllib
import yaml

from documented import FaultyBlockError
from documented.blocks import ROOT
from documented.ehm_commands import check_ehm
from documented.requests import check_curl
from documented.shell import split_commands

_NAMES = """
. .venv/bin/pre-commit apt-get atc aws cd chromium cp du export git grep head helm hf kubectl ls man mkdir modelscope
npu-smi nvidia-smi pytest ray sbatch scp sort source squeue ssh tar tensorboard tritonserver trtexec unzip uv wget
"""
OTHERS = frozenset(_NAMES.split())
"""Programs of others, whose arguments nothing checks here."""

_FOLDERS = ("benchmarks/", "docker/", "docs/", "configs/", "tests/", "deploy/", "ehm/", "backends/", ".ci/", ".github/")
_FILES_OF_OTHERS = {"docker/supported_tags.md"}
"""Files of other repositories that documents quote, here Ascend/pytorch."""
_PLACEHOLDER = re.compile(r"(?<![A-Za-z])[A-Z]{2,}(?![A-Za-z])|\.\.\.")
_IMAGE = re.compile(r"(?:\S+/)?ehm:([a-z-]+)")


def check_shell(text):
    """Check all commands of a block; return whether one of them was of this repository."""
    known = [_check_command(words) for words in split_commands(text)]
    return any(known)


def _check_command(words):
    check_paths(words)
    program = words[0]
    if program in _CHECKS:
        return _CHECKS[program](words)
    if program.startswith(".ci/"):
        return True
    if program not in OTHERS:
        raise FaultyBlockError(f"{program}: no check knows this program; see tests/documented/programs.py")
    return False


def check_paths(words):
    """Check that files of the repository exist, unless a word in capitals stands for a part of their names."""
    for word in words:
        path = word.partition("::")[0]
        is_own = path.startswith(_FOLDERS) and path not in _FILES_OF_OTHERS
        if not is_own or _PLACEHOLDER.search(path):
            continue
        if not (ROOT / path).exists() and not any(ROOT.glob(path)):
            raise FaultyBlockError(f"{word}: there is no such file in the repository")


def _check_own(words):
    check_ehm(words[1:])
    return True


def _check_make(words):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", text, re.MULTILINE))
    for word in words[1:]:
        name, is_set, _ = word.partition("=")
        if name not in (variables if is_set else targets):
            raise FaultyBlockError(f"make {word}: the Makefile has no such {'variable' if is_set else 'target'}")
    return True


def _check_pip(words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    found = [match[1] for word in words for match in [re.fullmatch(r"\S*(?:\.|\.whl)\[([^\]]+)\]", word)] if match]
    for extra in ",".join(found).split(",") if found else []:
        if extra not in extras:
            raise FaultyBlockError(f"pip install '.[{extra}]': pyproject.toml has no such extra")
    return bool(found) or "." in words


def _check_python(words):
    if words[1:2] == ["-c"]:
        from documented.python_code import check_python

        check_python(words[2])
        return True
    if words[1:3] == ["-m", "ehm.cli"]:
        check_ehm(words[3:])
        return True
    if words[1] == "-m":
        return words[2] == "pytest" and len(words) > 3
    if not words[1].startswith("benchmarks/"):
        return False
    # Flags of a script stand in it, or in a module beside it that it imports.
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    own = (ROOT / words[1]).read_text(encoding="utf-8")
    for word in words[2:]:
        if word.startswith("--") and f'"{word}"' not in own and f'"{word}"' not in source:
            raise FaultyBlockError(f"{words[1]} {word}: the script has no such flag")
    return True


def _check_launched(words):
    """Check what torchrun or msrun start: ``-m ehm.cli COMMAND``."""
    if "ehm.cli" not in words:
        return False
    check_ehm(words[words.index("ehm.cli") + 1 :])
    return True


def _check_docker(words):
    if words[1] == "compose":
        return _check_compose(words[2:])
    for index, word in enumerate(words):
        image = _IMAGE.fullmatch(word)
        if image and words[1] == "run":
            check_ehm(["serve"] * image[1].startswith("serve") + words[index + 1 :])
            return True
    return words[1] == "build" and any(fnmatch(word, "docker/*") for word in words)


def _check_compose(words):
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))["services"]
    action = next(word for word in words if word in ("run", "up", "build"))
    rest = [word for word in words[words.index(action) + 1 :] if not word.startswith("-")]
    if rest[0] not in services:
        raise FaultyBlockError(f"docker compose {action} {rest[0]}: compose.yaml has no such service")
    if action == "run":
        behind = words[words.index(rest[0]) + 1 :]
        check_ehm(["serve"] * rest[0].startswith("serve") + behind)
    return True


_CHECKS = {
    "ehm": _check_own,
    ".venv/bin/ehm": _check_own,
    "make": _check_make,
    "pip": _check_pip,
    "python": _check_python,
    "python3": _check_python,
    ".venv/bin/python": _check_python,
    "torchrun": _check_launched,
    "msrun": _check_launched,
    "docker": _check_docker,
    "curl": check_curl,
}
