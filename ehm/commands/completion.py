"""``ehm completion``: the script that lets a shell complete the command line, written by shtab.

shtab completes commands, flags and their choices. Added here are files and folders, and the words of flags that take
names without being limited to them: devices, configurations, and keys.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from typing import Any

from ehm.cli import build_parser
from ehm.commands.parser import CommandParser
from ehm.config.commands import list_key_names
from ehm.config.keys import list_keys
from ehm.config.loading import shipped_configs
from ehm.console import print_line
from ehm.errors import BackendError
from ehm.installation import build_install_command

__all__ = ["print_completion"]

_DEVICES = {
    "predict": ("auto", "cpu", "cuda", "npu", "openvino", "tensorrt", "om"),
    "launch": ("cpu", "cuda", "npu", "mindspore", "mindspore:cpu"),
}
"""Devices by command; the others run exported networks as ``predict`` does, or train."""
_RUNS_NETWORKS = ("export", "bench", "serve")
_TRAINING_DEVICES = ("auto", "cpu", "cuda", "npu", "mindspore", "mindspore:cpu", "mindspore:ascend")
_WORDS = {
    "task": ("classification", "detection", "segmentation", "retrieval", "vision_language"),
    "precision": ("float32", "float16", "int8"),
    "index": ("flat", "hnsw", "ivf"),
    "only": ("knn", "linear", "rankme"),
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
        known = _DEVICES.get("predict" if command in _RUNS_NETWORKS else command, _TRAINING_DEVICES)
        return _offer_words(f"{command}_device", known)
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
