"""Data in documents: configurations, studies, settings of the server, objects of Kubernetes, JSON and TOML."""

import json
import re

import tomllib
import yaml
from kubeflow_trainer_api.models import IoK8sApiCoreV1PodTemplateSpec

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
        _check_kubernetes(values)
    elif "arms" in values:
        check_study(values)
    elif set(values) <= fields:
        try:
            Settings.model_validate({key.replace("-", "_"): value for key, value in values.items()})
        except ValueError as error:
            raise FaultyBlockError(f"ehm serve --config: {error}") from None
    else:
        check_configuration(values)


def _check_kubernetes(values):
    """Check the pods of an object of Kubernetes by Kubernetes' own model, and the commands that they run."""
    template = values.get("spec", {}).get("template")
    if template is not None:
        try:
            known = IoK8sApiCoreV1PodTemplateSpec.from_dict(template).to_dict()
        except ValueError as error:
            raise FaultyBlockError(f"is no pod of Kubernetes: {error}") from None
        lost = _find_lost(template, known)
        if lost:
            raise FaultyBlockError(f"{lost}: pods of Kubernetes have no such field")
    for container in _find_containers(values):
        _check_container(container)


def _find_lost(values, known):
    """Return the first key of ``values`` that ``known`` does not have; the model drops fields that it does not know."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key not in known:
                return key
            lost = _find_lost(value, known[key])
            if lost:
                return lost
    elif isinstance(values, list):
        for value, other in zip(values, known, strict=True):
            lost = _find_lost(value, other)
            if lost:
                return lost
    return None


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
