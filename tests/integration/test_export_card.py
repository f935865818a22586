"""The model card: front matter that YAML reads, the chain of runs, and Python that runs as it stands."""

import json

import numpy as np
import pytest
import yaml
from checkpoints import LABELS, classifier, pretrained
from PIL import Image

from ehm.config import DataConfig, ExportConfig, ModelSource
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Quality
from ehm.deploy.export import card, export
from ehm.deploy.predict.predictor import Predictor

SIZE = (48, 64)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretraining run, and a classifier that says it began with it."""
    folder = tmp_path_factory.mktemp("runs")
    pretrained(folder / "pretrain", SIZE)
    source = ModelSource(init="scratch", width=32, depth=1, heads=2, image_size=SIZE)
    path = classifier(folder / "finetune", SIZE, data=DataConfig(source="/secret/place/cells"), model=source)
    state = json.loads((path / "state.json").read_text())
    state["config"]["model"]["init"] = str(folder / "pretrain")
    state["config"]["optim"] |= {"batch_size": 24, "accumulate": 4}
    state["metrics"] = {"balanced_accuracy": 0.5, "top1": 0.75, "auc": None}
    (path / "state.json").write_text(json.dumps(state))
    return folder


def read(bundle):
    """Front matter and text."""
    _, front, text = (bundle / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_tells_of_the_whole_chain(runs, tmp_path):
    given = ["license=apache-2.0", "data_license=CC BY 4.0"]
    bundle = export(runs / "finetune", out=tmp_path / "bundle", overrides=given)
    assert "README.md" in Bundle.open(bundle).manifest.files
    front, text = read(bundle)
    assert (front["license"], front["library_name"]) == ("apache-2.0", "ehm")
    assert front["pipeline_tag"] == "image-classification"
    assert front["datasets"] == ["cells", "elpv"]
    assert {"onnx", "evolved"} <= set(front["tags"])
    assert "Its 3 classes: cat, dog, Käfer." in text
    assert "- Fine-tuned to 3 classes on cells: 1 of" in text
    assert " steps of 24 images), seed" in text  # accumulated in parts, and not more
    assert "- Pretrained without labels by mae, masking evolved (75% of the patches hidden) on elpv: 1 of" in text
    assert "the first weights were random" in text
    assert "| top1 | 0.7500 |" in text
    assert "auc" not in text
    assert "data: CC BY 4.0" in text
    assert "/secret" not in text
    export(runs / "finetune", out=bundle)  # a card is part of the bundle, which may be replaced
    front, text = read(bundle)
    assert front["license"] == "unknown"
    assert "- model: not stated\n" in text
    assert "- data: [CC BY-NC-SA 4.0]" in text  # of the pretraining
    assert "of the others not stated" in text
    assert "Of the checkpoint step-" in text
    assert "flatters" not in text


def test_a_licence_that_nobody_stated_is_not_guessed_and_the_best_checkpoint_says_how_it_was_chosen(tmp_path):
    path = classifier(tmp_path / "run", SIZE, data=DataConfig(source="/photos"))
    state = json.loads((path / "state.json").read_text())
    state["metrics"] = {"balanced_accuracy": 0.5, "top1": 0.75}
    (path / "state.json").write_text(json.dumps(state))
    best = path.parent.parent / "best" / path.name
    best.parent.mkdir()
    path.rename(best)
    _, text = read(export(best, out=tmp_path / "bundle"))
    assert "- data: not stated" in text
    assert "chosen for its balanced accuracy on the same ones, which flatters it:" in text


def test_a_checkpoint_whose_origin_is_gone_says_its_name(runs, tmp_path):
    path = classifier(tmp_path / "alone", SIZE)
    state = json.loads((path / "state.json").read_text())
    state["config"]["model"]["init"] = str(tmp_path / "gone")
    (path / "state.json").write_text(json.dumps(state))
    _, text = read(export(path, out=tmp_path / "bundle"))
    assert "- Before that: gone." in text
    bare = tmp_path / "vit.safetensors"
    bare.write_bytes((path / "model.safetensors").read_bytes())
    _, text = read(export(bare, out=tmp_path / "bundle", overrides=["model.heads=2", "model.image_size=[48,64]"]))
    assert "The weights come from a file, which says nothing of its training" in text
    assert "The checkpoint records none." in text


@pytest.mark.parametrize("overrides", [(), ("preprocessing=true",)])
def test_the_python_of_the_card_runs_as_it_stands(runs, overrides, tmp_path, monkeypatch):
    bundle = export(runs / "finetune", out=tmp_path / "bundle", overrides=overrides)
    code = read(bundle)[1].partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) <= 11
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (70, 91, 3), dtype=np.uint8))
    image.save(bundle / "photo.png")
    monkeypatch.chdir(bundle)
    names = {}
    exec(code, names)
    predictor = Predictor(Bundle(bundle, Bundle.open(bundle).manifest))
    expected = predictor.run(predictor.prepare(image)[None])["logits"]
    assert expected.shape == (1, len(LABELS))
    np.testing.assert_allclose(names["values"], expected, atol=1e-5)


def test_other_numbers_are_reported_beside_float32(runs, tmp_path):
    bundle = export(runs / "finetune", out=tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    quality = Quality(source="/a/photos", images=40, cosine=0.9995, cosine_min=0.99, agreement=0.975, accuracy=0.5)
    quality = quality.model_copy(update={"accuracy_float32": 0.525})
    small = manifest.models["float32"].model_copy(update={"file": "model.int8.onnx", "quality": quality})
    manifest = manifest.model_copy(update={"models": {**manifest.models, "int8": small}})
    card.write_card(manifest, ExportConfig(), tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "int8 (`model.int8.onnx`), beside float32 on 40 images of photos: mean cosine of the logits 0.99950" in text
    assert "least 0.99000 (little is meant by it where logits are near 0)" in text
    assert "the same class for 97.5%; accuracy on these 50.0%, of float32 52.5%." in text
