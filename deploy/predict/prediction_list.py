"""The predictions of several images, which a notebook shows with the images."""

from __future__ import annotations

from pathlib import Path

from ehm.deploy.predict.prediction import Prediction

__all__ = ["PredictionList"]

_MOST_PICTURES = 24
"""Images that a notebook shows: each is embedded in it."""


class PredictionList(list[Prediction]):
    """A list of predictions, of which a notebook shows the first ones."""

    def _repr_html_(self) -> str:
        # imported here: a service predicts without ever showing a card
        from ehm.report.card import CaptionedPicture, Card, embed_small, render_card

        small = []
        sentences = []
        for prediction in self[:_MOST_PICTURES]:
            # the first line is the name of the image
            lines = str(prediction).splitlines()[1:]
            picture = embed_small(Path(prediction.image), prediction.image) if prediction.error is None else None
            if picture is None:
                sentences.append(str(prediction))
            else:
                small.append(CaptionedPicture(picture, [Path(prediction.image).name, *lines]))
        if len(self) > _MOST_PICTURES:
            sentences.append(f"The first {_MOST_PICTURES} of {len(self):,} images.")
        return render_card(Card(kind="Predictions", small=small, sentences=sentences))
