"""Data in documents: configurations, studies, settings of the server, objects of Kubernetes, JSON and TOML."""

import json
import re

import tomllib
import yaml

from documented import FaultyBlockError
from documented.ehm_commands import check_configuration, check_ehm, check_study
from ehm.deploy.serve.settings import Settings


def check_yaml(text):
    """Check every document of a block of YAML."""
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise FaultyBlockError(f"is not YAML: {error}") from None
    for values in documents:
        if not isinstance(values, dict):
            raise FaultyBlockError("is not a mapping of keys to values")
        _check_mapping(values)
    return True


def _check_mapping(values):
    fields = {name.replace("_", "-") for name in Settings.model_fields}
    if "apiVersion" in values:
        for container in _find_containers(values):
            _check_container(container)
    elif "arms" in values:
        check_study(values)
    elif set(values) <= fields:
        try:
            Settings.model_validate({key.replace("-", "_"): value for key, value in values.items()})
        except ValueError as error:
            raise FaultyBlockError(f"ehm serve --config: {error}") from None
    else:
        check_configuration(values)


def _find_containers(value):
    """Yield the containers of an object of Kubernetes."""
    if isinstance(value, list):
        for each in value:
            yield from _find_containers(each)
    elif isinstance(value, dict):
        yield from value.get("containers", [])
        for each in value.values():
            yield from _find_containers(each)


def _check_container(container):
    image = re.search(r"\behm:([a-z-]+)$", container.get("image", ""))
    if image:
        check_ehm(["serve"] * image[1].startswith("serve") + container["args"])


def check_json(text):
    """Check a block of JSON: one value, or one on each line."""
    try:
        json.loads(text)
    except ValueError:
        try:
            for line in text.splitlines():
                json.loads(line)
        except ValueError as error:
            raise FaultyBlockError(f"is not JSON: {error}") from None
    return True


def check_toml(text):
    """Check a block of TOML."""
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FaultyBlockError(f"is not TOML: {error}") from None
    return True


def check_text(text):
    """Check that what is shown as text holds no command, which would be checked in a block of shell."""
    for line in text.splitlines():
        if re.match(r"(?:\$ )?(?:ehm|pip|make|docker|python) ", line):
            raise FaultyBlockError(f"{line}: is a command; use a block of sh")
    return True
