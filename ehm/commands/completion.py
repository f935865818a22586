"""``ehm completion``: the script that lets a shell complete the command line, written by shtab.

shtab completes commands, flags and their choices. Added here are files and folders, and the words of flags that take
names without being limited to them: devices, also those of other packages, tasks, configurations, and keys. They come
from the tables of the code, and no framework is imported for them.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from typing import Any, get_args

from ehm.backends import list_devices
from ehm.cli import build_parser
from ehm.commands.parser import CommandParser
from ehm.config.commands import list_key_names
from ehm.config.keys import list_keys
from ehm.config.loading import shipped_configs
from ehm.config.tasks.classification import PROBE_FIGURES
from ehm.console import print_line
from ehm.deploy.bundle.manifest import IndexKind, Precision
from ehm.deploy.launch.devices import CLUSTER_DEVICES
from ehm.deploy.predict.runtime import OFFLINE_DEVICE, PROVIDERS
from ehm.errors import BackendError
from ehm.installation import build_install_command
from ehm.tasks.registry import TASKS

__all__ = ["print_completion"]

_MINDSPORE_TARGETS = ("mindspore:cpu", "mindspore:ascend")
"""The devices that ``--device mindspore`` chooses between. The backend has a table of them, but imports MindSpore."""
_WORDS = {
    "precision": get_args(Precision),
    "index": get_args(IndexKind),
    "only": PROBE_FIGURES,
}
"""Values of flags by name, in every command that has them."""
_FOLDERS = ("DIR", "RUN", "BUNDLE", "[NAME=]DIR")
_FILES = ("FILE", "IMAGE", "CHECKPOINT", "ENCODER", "SOURCE", "BUNDLE IMAGE ... | SOURCE")
"""Placeholders of values that are folders, and files or folders."""

_FUNCTIONS = {
    "bash": '{name}() {{\n  compgen -W {words} -- "$1"\n{files}}}',
    "zsh": "{name}() {{\n  compadd -S '' -- {words}\n{files}}}",
    "fish": "function {name}\n  printf '%s\\n' {words}\n{files}end",
}
"""Functions of the shells that offer words, and files beside them."""
_FILE_LINES = {
    "bash": '  compgen -f -- "$1"\n',
    "zsh": "  _files\n",
    "fish": "  __fish_complete_path (commandline -ct)\n",
}
_NO_SPACE_BEHIND_A_KEY = """
_ehm_complete() {
  _shtab_ehm "$@"
  # the value of a key follows at once
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o bashdefault -F _ehm_complete ehm"""


def print_completion(shell: str) -> None:
    """Print the script for ``shell``: bash, zsh, fish or tcsh.

    Raises BackendError if shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise BackendError(f"shtab is not installed; {build_install_command('completion')} installs it") from None
    parser = build_parser()
    for name, command in parser.list_commands().items():
        _describe_values(name, command)
    script = shtab.complete(parser, shell)
    print_line(script + _NO_SPACE_BEHIND_A_KEY if shell == "bash" else script)


def _describe_values(command: str, parser: CommandParser) -> None:
    """Tell shtab what the flags and arguments of a command take."""
    keys = [f"{key}=" for key in sorted(list_key_names(command))]
    takes_settings = parser.takes_settings()
    for action in list(parser._actions):
        completion = _choose_completion(command, action, keys)
        is_last_argument = not action.option_strings and action.nargs in ("*", "+")
        if is_last_argument and takes_settings:  # settings stand between files and folders
            completion = _offer_words(f"{command}_{action.dest}", keys, with_files=True)
            takes_settings = False
        if completion is not None:
            action.complete = completion  # type: ignore[attr-defined]
    if takes_settings:
        settings = parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="Setting.")
        settings.complete = _offer_words(f"{command}_settings", keys)  # type: ignore[attr-defined]


def _choose_completion(command: str, action: argparse.Action, keys: list[str]) -> Any:
    """Return shtab's description of the values of a flag or an argument; None if nothing is known of them."""
    import shtab

    if action.choices is not None or action.nargs == 0:
        return None
    if action.dest == "overrides":
        return _offer_words(f"{command}_set", keys)
    if action.dest == "device":
        return _offer_words(f"{command}_device", _list_devices(command))
    if action.dest == "task":
        return _offer_words(f"{command}_task", _list_tasks(command))
    if action.dest in ("config", "train") or (command, action.dest) == ("configs", "name"):
        return _offer_words("configs", shipped_configs(), with_files=True)
    if action.dest == "keys":
        return _offer_words("sections", sorted({key.name.rpartition(".")[0] for key in list_keys()} - {""}))
    if action.dest in _WORDS:
        return _offer_words(action.dest, _WORDS[action.dest])
    if action.metavar in _FOLDERS:
        return shtab.DIRECTORY
    if action.metavar in _FILES:
        return shtab.FILE
    return None


def _list_devices(command: str) -> list[str]:
    """Return the devices that a command takes."""
    if command in ("predict", "bench", "serve"):
        return ["auto", *PROVIDERS, OFFLINE_DEVICE]
    if command == "export":
        return ["auto", *PROVIDERS]
    if command == "launch":
        return [device.name for device in CLUSTER_DEVICES]
    return ["auto", *list_devices(), *_MINDSPORE_TARGETS]


def _list_tasks(command: str) -> list[str]:
    """Return the tasks that a command takes: for ``evaluate`` those that measure an encoder without training."""
    if command == "evaluate":
        return [name for name, task in TASKS.items() if task.measures_untrained]
    return list(TASKS)


def _offer_words(name: str, words: Iterable[str], with_files: bool = False) -> dict[str, Any]:
    """Return shtab's description of values that are ``words``, by a function of that name in the script."""
    listed = list(words)
    function = f"_ehm_{name}"
    preamble = {}
    for shell, template in _FUNCTIONS.items():
        quoted = shlex.quote(" ".join(listed)) if shell == "bash" else shlex.join(listed)
        files = _FILE_LINES[shell] if with_files else ""
        preamble[shell] = template.format(name=function, words=quoted, files=files)
    # tcsh has no functions
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "tcsh": f"({' '.join(listed)})",
        "preamble": preamble,
    }
