"""Commands of ehm: its own parser reads them, and their configurations take the keys and values of ``--set``."""

import contextlib
import io
from pathlib import Path

from documented import FaultyBlockError
from ehm.cli import build_parser
from ehm.config import ExportConfig, ProbeConfig, TokenizerConfig, TrainConfig, load_config
from ehm.config.commands import COMMANDS
from ehm.config.comparison import MeasureConfig, StudyConfig
from ehm.config.data import DataConfig
from ehm.config.keys import list_keys
from ehm.config.language_training import LanguageTrainingConfig
from ehm.config.loading import locate_config, read_config
from ehm.config.section import Section
from ehm.deploy.launch.plan import parse_command
from ehm.errors import ConfigError
from ehm.tasks.registry import TASKS


class _ReadSource(Section):
    """The configuration of the commands that read a source and train nothing."""

    data: DataConfig = DataConfig()


_TRAINING = {
    "train": (TrainConfig, "elpv/pretrain"),
    "probe": (ProbeConfig, "elpv/probe"),
    "tokenizer": (TokenizerConfig, "elpv/tokenizer"),
    "language": (LanguageTrainingConfig, "easy_vqa/language"),
}
"""The configuration of each command, and the shipped one that it takes if none is given."""
_OTHERS = {"export": ExportConfig, "compare": MeasureConfig, "data": _ReadSource, "predict": _ReadSource}


def check_ehm(words):
    """Check a command, given as the words behind ``ehm``."""
    options = parse(words)
    if options is None:
        return
    try:
        _check_settings(options)
        if options["command"] == "launch":
            parse_command(options["arguments"])
            check_ehm(options["arguments"])
        if options["command"] == "configs" and "name" in options:
            _check_listed(options["name"])
    except ConfigError as error:
        raise FaultyBlockError(f"ehm {' '.join(words)}: {error}") from None


def parse(words):
    """Return the flags of a command by name, or None for ``--help`` and ``--version``."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            return vars(build_parser(words[:1]).parse_args(words))
    except SystemExit as end:
        if not end.code:
            return None
        raise FaultyBlockError(f"ehm {' '.join(words)}: {said.getvalue().splitlines()[-1]}") from None
    except ConfigError as error:
        raise FaultyBlockError(f"ehm {' '.join(words)}: {error}") from None


def _check_settings(options):
    command = options["command"]
    overrides = options.get("overrides") or []
    config = options.get("config")
    if command in _TRAINING:
        kind, default = _TRAINING[command]
        # an objective without a configuration starts from its published recipe
        names_objective = any(each.startswith("objective=") for each in overrides)
        _load(kind, config or (None if names_objective or options.get("replay") else default), overrides)
    elif command == "finetune":
        configured = _read_task(config)
        entry = TASKS[options.get("task") or configured or "classification"]
        _load(entry.config, config or entry.recipe, overrides)
    elif command == "evaluate":
        kinds = [TASKS[options["task"]].config] if "task" in options else [entry.config for entry in TASKS.values()]
        _load_any(kinds, config, overrides)
    elif command == "compare" and "train" in options:
        study = load_config(StudyConfig, locate_config(options["train"]))
        for arm in options.get("arms", []):
            if arm not in study.arms:
                raise ConfigError(f"--arms {arm}: the arms are {', '.join(study.arms)}")
    elif command in _OTHERS:
        _load(_OTHERS[command], config, overrides)


def _load(kind, config, overrides):
    """Validate the settings; a file that the reader is to write stands for the defaults."""
    if config is not None and not _is_shipped(config):
        if Path(config).suffix != ".yaml":
            raise ConfigError(f"--config {config}: neither a shipped configuration nor a YAML file")
        config = None
    load_config(kind, config, overrides)


def _load_any(kinds, config, overrides):
    """Validate the settings of a command whose checkpoint decides about the configuration."""
    reasons = []
    for kind in kinds:
        try:
            return _load(kind, config, overrides)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; ".join(reasons))


def _read_task(config):
    if config is None or not _is_shipped(config):
        return None
    return read_config(config).get("task")


def _is_shipped(config):
    try:
        locate_config(config)
    except ConfigError:
        return False
    return True


def _check_listed(name):
    root = locate_config("elpv/pretrain").parents[1]
    if not (root / name).is_dir():
        locate_config(name)


def check_keys(overrides):
    """Check that some command has the keys of ``KEY=VALUE``: a sentence seldom says of which it speaks."""
    names = {key.name for key in list_keys()}
    for override in overrides:
        key = override.strip("'").partition("=")[0]
        is_known = key in names or any(name.startswith(f"{key}.") for name in names)
        if key.islower() and not is_known:
            raise FaultyBlockError(f"--set {override}: no command has such a key")


def check_configuration(values):
    """Check the contents of a YAML file: it has to be a configuration of some command."""
    reasons = []
    for kind in COMMANDS:
        try:
            return load_config(kind, values)
        except ConfigError as error:
            reasons.append(f"{COMMANDS[kind]}: {error}")
    shortest = min(reasons, key=len)
    raise FaultyBlockError(f"is no configuration of any command; {shortest}")


def check_study(values):
    """Check the contents of a study: the file itself, and the configuration of every arm."""
    try:
        study = load_config(StudyConfig, values)
        for arm in study.arms.values():
            load_config(TrainConfig, study.base or "elpv/pretrain", [*study.overrides, *arm.overrides])
    except ConfigError as error:
        raise FaultyBlockError(f"study: {error}") from None
