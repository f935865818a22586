"""Published weights of a network of timm's without timm: its repository on the Hugging Face Hub.

timm keeps the weights of its name NAME.TAG in the repository ``timm/NAME.TAG``, beside settings that tell the network.
"""

from __future__ import annotations

from dataclasses import replace

from ehm.config import ModelSource
from ehm.errors import ConfigError
from ehm.models.hub import HUB, download_repository
from ehm.models.opening import read_weights_file
from ehm.models.published.opening import open_hub_folder
from ehm.models.weights import Weights

__all__ = ["TIMM", "open_timm_repository"]

TIMM = "timm:"
"""Beginning of a name in ``model.init`` that is a network of timm's."""


def open_timm_repository(source: ModelSource) -> Weights:
    """Open the published weights of the network of timm's that ``source.init`` names, "timm:NAME.TAG".

    Raises ConfigError for other names, which only timm knows, and errors as :func:`download_repository` and
    :func:`open_hub_folder` do: networks that are no encoder of ours are refused there.
    """
    name, _, option = source.init.removeprefix(TIMM).partition("?")
    if option not in ("", "pretrained=true"):
        raise ConfigError(
            f"model.init {source.init}: without torch, only published weights of timm's load; leave ?{option} out, or "
            "take scratch for an untrained encoder"
        )
    _, _, tag = name.partition(".")
    if not tag or "/" in name:
        raise ConfigError(
            f"model.init {source.init}: without torch, a name of timm's needs the tag of its weights, as "
            "timm:vit_base_patch16_224.mae"
        )
    folder = download_repository(f"{HUB}timm/{name}", source.init)
    weights = open_hub_folder(source, folder, read_weights_file)
    notes = (f"{name} of timm, with its published weights", *weights.provenance.notes)
    return replace(weights, provenance=replace(weights.provenance, kind="timm", notes=notes))
