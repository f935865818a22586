"""Visual tokens of images, which a language model reads in the place of words.

Shapes: K visual tokens, W features of the language model.
"""

from __future__ import annotations

from ehm.deploy.predict.features import FeaturesHandler
from ehm.deploy.predict.handler import CardTexts, Outputs
from ehm.deploy.predict.prediction import Prediction

__all__ = ["VisualTokensHandler"]


class VisualTokensHandler(FeaturesHandler):
    """A bundle that gives visual tokens (K, W) for each image of a batch."""

    card = CardTexts("Eyes of a language model", "image-feature-extraction")

    def describe(self, image: str, outputs: Outputs, top: int) -> Prediction:
        """Return the visual tokens of one image as a prediction."""
        return Prediction(image, visual_tokens=outputs.get("visual_tokens"))

    def describe_input(self) -> str:
        """Say how an image becomes the network's input, and which language model reads what it gives."""
        language = self.manifest.language
        assert language is not None  # the manifest was checked
        return (
            f"{super().describe_input()} The tokens are for {language.source} alone ({language.model_type}, "
            f"{language.width} features, weights {language.weights[:12]}), which is not part of the bundle. It reads "
            f"{language.before!r}, the tokens, {language.after!r} and {language.prompt!r}"
            f"{', in its chat template' if language.chat else ''}."
        )


HANDLER = VisualTokensHandler
"""The handler of the task that this file is named after; ``create_handler`` finds it by that name."""
