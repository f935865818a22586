"""Prediction from image files by a hand-made network: features, classes, folders, and what is printed and written."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from made_bundles import IMAGES, MEAN, PREPROCESSING, STD, make_bundle, make_manifest, write_network
from onnx import helper
from PIL import Image

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.predict.command import main, predict
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import ConfigError, DataError, ExportError
from ehm.probabilities import compute_softmax


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle", outputs=["features"]).path


@pytest.fixture
def classifier(tmp_path):
    return make_bundle(tmp_path / "classifier", outputs=["logits"], labels=["red", "green", "blue"]).path


def save_plain_image(path, colour, size=(90, 70)):
    """Save an image of one colour; returns its path."""
    Image.new("RGB", size, colour).save(path)
    return path


def test_images_are_resized_as_the_manifest_says(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", preprocessing=PREPROCESSING | {"cover": [30, 44]})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 88, 3), dtype=np.uint8))
    pixels = np.asarray(image.resize((44, 30), Image.Resampling.BICUBIC).crop((1, 1, 43, 29))) / 255
    found = Predictor(bundle.path).prepare(image)
    np.testing.assert_allclose(found, ((pixels - MEAN) / STD).transpose(2, 0, 1), atol=1e-5)


def test_features_are_those_of_the_normalised_picture(bundle, tmp_path):
    """A plain picture stays plain through resize and crop, so its channel means are (colour / 255 - mean) / std."""
    png = save_plain_image(tmp_path / "a.png", (255, 0, 128))
    jpeg = save_plain_image(tmp_path / "b.jpg", (10, 200, 30), (300, 41))
    found = predict(bundle, [png, jpeg])
    expected = (np.array([[255, 0, 128], [10, 200, 30]]) / 255 - MEAN) / STD
    assert np.abs(found[0].features - expected[0]).max() < 1e-5
    assert np.abs(found[1].features - expected[1]).max() < 0.02  # JPEG is off by a unit or two of 255
    assert [prediction.image for prediction in found] == [str(png), str(jpeg)]


def test_classes_come_sorted_with_probabilities(classifier, tmp_path):
    (found,) = predict(classifier, save_plain_image(tmp_path / "blue.png", (0, 0, 255)), top=2)
    logits = (np.array([0, 0, 1]) - MEAN) / STD
    shares = np.exp(logits) / np.exp(logits).sum()
    assert [name for name, _ in found.classes] == ["blue", "green"]
    assert np.allclose([share for _, share in found.classes], shares[[2, 1]], atol=1e-6)
    (found,) = predict(classifier, tmp_path / "blue.png", top=9)
    assert len(found.classes) == 3


def test_softmax_neither_overflows_nor_loses_small_shares():
    shares = compute_softmax(np.array([[1e4, 1e4 - 20, -1e4], [0, 0, 0]], np.float32))
    assert shares.dtype == np.float64
    assert np.allclose(shares[0], [1 / (1 + np.exp(-20)), np.exp(-20) / (1 + np.exp(-20)), 0], rtol=1e-12)
    assert np.allclose(shares[1], 1 / 3)


def test_folders_are_walked_in_order_and_batches_do_not_mix(classifier, tmp_path):
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    for index in range(20):
        save_plain_image(folder / ("b" if index >= 10 else "") / f"{index:02d}.PNG", colours[index % 3])
    (folder / "notes.txt").touch()
    (folder / "._05.png").touch()
    (folder / ".thumbnails").mkdir()
    save_plain_image(folder / ".thumbnails" / "05.png", "red")
    (folder / "b").rename(tmp_path / "elsewhere")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    found = predict(classifier, folder, top=1)
    assert [Path(prediction.image).stem for prediction in found] == [f"{index:02d}" for index in range(20)]
    assert [prediction.classes[0][0] for prediction in found] == [["red", "green", "blue"][i % 3] for i in range(20)]


def test_an_empty_folder_is_one_sentence(classifier, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images below this folder"):
        predict(classifier, tmp_path / "empty")
    with pytest.raises(ConfigError, match="--top 0: expected at least 1"):
        predict(classifier, save_plain_image(tmp_path / "a.png", "red"), top=0)


def test_a_broken_image_is_reported_and_the_others_go_on(classifier, tmp_path, capsys):
    good = save_plain_image(tmp_path / "good.png", "red")
    bad = tmp_path / "bad.png"
    gone = tmp_path / "gone.png"
    bad.write_bytes(good.read_bytes()[:60])
    too_long = tmp_path / f"{'n' * 300}.png"
    assert main([classifier, bad, good, gone, too_long], top=1) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == str(good)
    assert out.split() == [str(good), out.split()[1], "red"]
    assert f"{bad}: " in err
    assert f"{gone}: No such file or directory" in err
    assert f"{too_long}: File name too long" in err.replace("\n", "")
    assert "3 of 4 images could not be read" in err


def test_json_is_one_object_a_line_and_nothing_else(classifier, tmp_path, capsys):
    good = save_plain_image(tmp_path / "good.png", "red")
    gone = tmp_path / "gone.png"
    assert main([classifier, good, gone], json=True, top=1) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["image"] == str(good)
    assert lines[0]["classes"][0]["label"] == "red"
    assert lines[1] == {"image": str(gone), "error": "No such file or directory"}


def test_out_gets_features_and_their_images(bundle, tmp_path, capsys):
    red = save_plain_image(tmp_path / "a.png", "red")
    green = save_plain_image(tmp_path / "b.png", "lime")
    assert main([bundle, red, tmp_path / "gone.png", green], out=tmp_path / "out") == 1
    features = np.load(tmp_path / "out" / "features.npy")
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).name for line in lines if "error" not in line] == ["a.png", "b.png"]
    assert np.allclose(features, (np.array([[1, 0, 0], [0, 1, 0]]) - MEAN) / STD, atol=1e-5)
    assert "3 features, norm" in capsys.readouterr().out


def test_results_of_an_earlier_call_do_not_stay_beside_new_ones(bundle, classifier, tmp_path):
    out = tmp_path / "out"
    image = save_plain_image(tmp_path / "a.png", "red")
    predict(bundle, [image, image], out=out)
    np.save(out / "patches.npy", np.zeros(1))
    assert np.load(out / "features.npy").shape == (2, 3)
    (out / "notes.txt").touch()
    predict(classifier, image, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "predictions.jsonl"]
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 1


def test_out_that_is_a_file_is_said_before_anything_runs(bundle, tmp_path):
    image = save_plain_image(tmp_path / "a.png", "red")
    with pytest.raises(ConfigError, match=r"--out .*a\.png: is no folder"):
        predict(bundle, image, out=image)


def test_the_function_prints_nothing_but_json(classifier, tmp_path, capsys):
    image = save_plain_image(tmp_path / "a.png", "red")
    predict(classifier, image)
    assert capsys.readouterr() == ("", "")
    (found,) = predict(classifier, image, json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.as_dict()))


def test_precision_chooses_the_network(tmp_path, capsys):
    """The network in int8 gives twice the features here, to be told apart."""
    bundle = tmp_path / "bundle"
    with stage_bundle(bundle) as folder:
        write_network(folder / "model.onnx", IMAGES, ["features"])
        model = onnx.load(folder / "model.onnx")
        model.graph.node[-1].output[0] = "once"
        model.graph.node.append(helper.make_node("Add", ["once", "once"], ["features"]))
        onnx.save(model, folder / "model.int8.onnx")
        Bundle.seal(folder, make_manifest(outputs=["features"], precisions=["float32", "int8"]))
    image = save_plain_image(tmp_path / "a.png", "red")
    (exact,) = predict(bundle, image, precision="float32")
    (small,) = predict(bundle, image, precision="int8")
    assert np.allclose(small.features, 2 * exact.features)
    assert main([bundle, image], precision="int8") == 0
    said = capsys.readouterr().err
    assert "1 image with" in said
    assert "; int8) on" in said
    with pytest.raises(ExportError, match="holds no float16 model, only float32, int8"):
        predict(bundle, image, precision="float16")
