"""Images are prepared as timm's transforms prepare them, for everything that a ``pretrained_cfg`` can say."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data
from timm.data import create_transform, resolve_data_config

from ehm.config.inputs import InputSpec, describe_changed_inputs
from ehm.data.eval_transform import EvalTransform
from ehm.deploy.bundle.manifest import Preprocessing
from ehm.deploy.bundle.preprocessing import create_eval_transform, describe_preprocessing

MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
SIZES = [(224, 224), (48, 64), (160, 80)]
"""Heights and widths of crops."""
SHAPES = [(256, 256), (451, 300), (37, 410), (333, 50), (33, 33)]
"""Heights and widths of photographs."""


@pytest.fixture(scope="module")
def photographs():
    """scikit-image's photographs, some of them made long and thin."""
    sources = [Image.fromarray(data.astronaut()), Image.fromarray(data.chelsea())]
    return [
        sources[number % 2].resize((width, height), Image.Resampling.LANCZOS)
        for number, (height, width) in enumerate(SHAPES)
    ]


def timms_pixels(photograph, size, **options):
    """Bytes (H, W, 3) by timm's own transform."""
    transform = create_transform(input_size=(3, *size), normalize=False, **options)
    return transform(photograph).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0, 1.15])
def test_pixels_are_timms(crop_mode, interpolation, crop_pct, photographs):
    options = {"crop_mode": crop_mode, "interpolation": interpolation, "crop_pct": crop_pct, "mean": MEAN}
    spec = InputSpec.from_mapping({**options, "std": STD})
    for size in SIZES:
        transform = EvalTransform.from_spec(size, spec)
        stored = describe_preprocessing(size, spec).model_dump(mode="json")
        replayed = create_eval_transform(Preprocessing.model_validate(stored))
        assert replayed == transform
        for photograph in photographs:
            expected = timms_pixels(photograph, size, **options)
            assert np.array_equal(transform(photograph), expected), (size, photograph.size)


def test_normalised_pixels_are_timms_for_published_networks(photographs):
    """Every kind of description that timm publishes, by the names of networks that have it."""
    seen = set()
    photograph = photographs[0]
    for name in timm.list_pretrained():
        published = timm.get_pretrained_cfg(name).to_dict()
        described = resolve_data_config({}, pretrained_cfg=published)
        kind = tuple(described[key] for key in ("interpolation", "crop_mode", "crop_pct"))
        if kind in seen or described["input_size"][0] != 3:
            continue
        seen.add(kind)
        spec = InputSpec.from_pretrained_cfg(published)
        assert spec == InputSpec.from_mapping(described)
        size = (96, 96)  # the size plays no part in what is described
        pixels = torch.tensor(EvalTransform.from_spec(size, spec)(photograph)).permute(2, 0, 1) / 255
        found = (pixels - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
        expected = create_transform(**{**described, "input_size": (3, *size)})(photograph)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(seen) > 30
    assert {kind[1] for kind in seen} == {"center", "squash", "border"}


def test_weights_that_say_nothing_are_measured_as_mae_does():
    """Manifests of older versions mean this, whatever their size."""
    for size in [*SIZES, (64, 96), (240, 256)]:
        transform = EvalTransform.from_spec(size, InputSpec())
        assert transform == EvalTransform(size, EvalTransform(size).cover)
        old = {"image_size": size, "cover": transform.cover, "mean": MEAN, "std": STD}
        old |= {"resize": "cover", "crop": "centre", "interpolation": "bicubic", "colour": "RGB"}
        assert create_eval_transform(Preprocessing.model_validate(old)) == transform
    assert EvalTransform((224, 224)).cover == (256, 256)
    assert EvalTransform((240, 256)).cover == (240, 256)


def test_a_description_comes_back_from_json():
    spec = InputSpec(MEAN, STD, 0.95, "border", "bilinear")
    assert InputSpec.from_mapping(spec.to_json()) == spec
    assert InputSpec.from_mapping({"mean": None, "source": "elpv", "crop_pct": None}) == InputSpec()
    for wrong in ({"crop_mode": "middle"}, {"interpolation": "random"}, {"std": [0, 1, 1]}, {"mean": [1, 2]}):
        with pytest.raises(ValueError, match=r"unknown|not a preparation|not those of"):
            InputSpec.from_mapping(wrong)


def test_what_a_configuration_changes_is_said():
    own = InputSpec(crop_pct=0.95)
    assert describe_changed_inputs(own, own) == ()
    (note,) = describe_changed_inputs(InputSpec(mean=MEAN, crop_pct=1.0), own)
    assert note == "these weights are taken as trained with data.mean [0.485, 0.456, 0.406], data.crop_pct 0.95"
