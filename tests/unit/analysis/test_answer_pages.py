"""The page of questions and answers, with and without where the latents look."""

import numpy as np
from PIL import Image

from ehm.analysis.answers import PicturedAnswer, draw_answers_page
from ehm.analysis.mosaic import wrap_caption

RED = np.full((32, 32, 3), (230, 20, 20), np.uint8)


def count_red(page):
    """The share of the page that is of the images' colour."""
    pixels = np.asarray(page).astype(int)
    return float((np.abs(pixels - RED[0, 0]).max(axis=-1) < 8).mean())


def test_answers_stand_side_by_side():
    answers = [PicturedAnswer(RED, "what color is the shape?", "red", "red", "blue")] * 5
    page = draw_answers_page(answers, "Answers", ["A note."])
    # four in a row of 300 pixels each, and the fifth below with room beside it
    assert 1200 < page.width < 1400
    assert count_red(page) * page.width * page.height > 4.9 * 300 * 300
    assert page.height > 700


def test_a_long_question_takes_several_lines():
    short = draw_answers_page([PicturedAnswer(RED, "why?", "red")], "Answers")
    long = draw_answers_page([PicturedAnswer(RED, "why is it red and not of another colour? " * 4, "red")], "Answers")
    assert long.height > short.height + 60
    assert len(wrap_caption("word " * 40, 300)) > 4


def test_latents_are_drawn_beside_the_image():
    looks = np.zeros((2, 4, 4))
    looks[0, 0, 0] = 1
    looks[1, 3, 3] = 1
    page = draw_answers_page([PicturedAnswer(RED, "what?", "red", "red", latent_attention=looks)] * 2, "Answers")
    assert 900 < page.width < 1100
    many = draw_answers_page([PicturedAnswer(RED, "what?", "red", latent_attention=np.zeros((32, 4, 4)))], "Answers")
    assert many.width < 9 * 350
    top = np.asarray(page.convert("RGB"))
    rows = np.flatnonzero((np.abs(top.astype(int) - RED[0, 0]).max(axis=-1) < 8).any(axis=1))
    # the first latent looks at the upper left of the second tile, where its colour differs from the rest of the tile
    left = 28 + 300 + 16
    corner = top[rows[0] + 30, left + 30].astype(int)
    rest = top[rows[0] + 250, left + 250].astype(int)
    assert np.abs(corner - rest).sum() > 60
    assert isinstance(page, Image.Image)
