"""From a checkpoint to ONNX Runtime, compared with timm and torchvision on the same weights and files.

The references share nothing with the export but the checkpoint's file: timm's own class is filled from
model.safetensors, and pictures go through torchvision or Pillow as written here.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import LABELS, MEAN, STD, classifier, pretrained, timm_vit
from PIL import Image
from torchvision import transforms

from ehm.data.eval_transform import EvalTransform
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.predictor import Predictor
from ehm.storage.checkpoint import open_checkpoint

ASCEND = {
    "Add", "Cast", "Concat", "Conv", "Div", "Erf", "Expand", "Flatten", "Gather", "Gemm", "Identity",
    "LayerNormalization", "MatMul", "Mul", "Pad", "Pow", "ReduceMean", "Reshape", "Shape", "Sigmoid", "Slice",
    "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators of a transformer that Ascend's converter registers (npu/cann_onnx_ops.tsv); Gelu and Attention are not."""


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """A run folder and its bundle; the images are 48 high and 64 across."""
    run = tmp_path_factory.mktemp("finetune")
    classifier(run, (48, 64))
    return run, export(run, out=run / "bundle")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A pretraining run and its bundle; the images are 48 x 48."""
    run = tmp_path_factory.mktemp("pretrain")
    pretrained(run, (48, 48))
    return run, export(run, out=run / "bundle")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Smooth pictures with fine grain, of several shapes."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(3)
    for name, (width, height) in {"a": (90, 70), "b": (61, 133), "c": (200, 48), "d": (64, 48)}.items():
        corners = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        smooth = np.asarray(corners.resize((width, height), Image.Resampling.BICUBIC))
        grain = rng.integers(-20, 21, (height, width, 3))
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def compute_logits_by_timm(run, images):
    model, tensors = timm_vit(open_checkpoint(run).folder, (48, 64), num_classes=3, global_pool="avg")
    model.load_state_dict(tensors)
    with torch.inference_mode():
        return model(torch.as_tensor(images)).numpy()


def test_every_batch_size_gives_what_timm_gives(finetuned):
    run, bundle = finetuned
    predictor = Predictor(bundle)
    rng = np.random.default_rng(0)
    for batch in range(1, 10):
        images = rng.normal(size=(batch, 3, 48, 64)).astype(np.float32)
        expected = compute_logits_by_timm(run, images)
        assert np.ptp(expected, axis=0).min() > 0.01 or batch == 1  # the weights tell images apart
        assert np.abs(predictor.run(images)["logits"] - expected).max() < 1e-5


def test_prediction_of_files_is_that_of_timm_with_hand_written_preprocessing(finetuned, photographs):
    """Cover 54 x 73 (48 and 64 over 0.875), cut the centre, normalise; all from a file to a probability."""
    run, bundle = finetuned
    inputs = []
    for file in photographs:
        image = Image.open(file)
        if image.width * 54 < image.height * 73:
            size = (73, image.height * 73 // image.width)
        else:
            size = (image.width * 54 // image.height, 54)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = round((size[0] - 64) / 2), round((size[1] - 48) / 2)
        pixels = np.asarray(image.crop((left, top, left + 64, top + 48)), np.float64) / 255
        inputs.append(((pixels - MEAN) / STD).transpose(2, 0, 1))
    logits = compute_logits_by_timm(run, np.stack(inputs).astype(np.float32)).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = predict(bundle, photographs, top=3)
    for prediction, expected in zip(found, shares, strict=True):
        assert [name for name, _ in prediction.classes] == [LABELS[index] for index in np.argsort(-expected)]
        assert np.abs(np.array([share for _, share in prediction.classes]) - np.sort(expected)[::-1]).max() < 1e-5


def test_features_are_the_whole_pictures_by_torchvision_and_timm(encoder, photographs):
    """MAE's evaluation transform is torchvision's Resize and CenterCrop; features are the mean of patch tokens."""
    run, bundle = encoder
    model, tensors = timm_vit(open_checkpoint(run).folder, (48, 48), num_classes=0, global_pool="avg", fc_norm=False)
    model.load_state_dict(tensors)
    prepare = transforms.Compose(
        [
            transforms.Resize(54, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(48),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = torch.stack([prepare(Image.open(file).convert("RGB")) for file in photographs])
    with torch.inference_mode():
        expected = model.forward_features(images)[:, 1:].mean(dim=1).numpy()
    found = np.stack([prediction.features for prediction in predict(bundle, photographs)])
    assert Bundle.open(bundle).manifest.outputs[0].name == "features"
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize(("size", "cover"), [(96, 109), (224, 256), (288, 288)])
def test_preprocessing_is_torchvisions_at_real_sizes(size, cover, photographs):
    prepare = transforms.Compose(
        [transforms.Resize(cover, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    )
    for file in photographs:
        image = Image.open(file).convert("RGB").resize((size + 40, size + 71))
        assert np.array_equal(EvalTransform((size, size))(image), np.asarray(prepare(image)))


def read_shapes(values):
    """Return the shapes of a graph's inputs or outputs by name."""
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


def test_the_graph_is_what_other_runtimes_take(finetuned):
    _, bundle = finetuned
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]

    assert read_shapes(model.graph.input) == {"images": ["batch", 3, 48, 64]}
    assert read_shapes(model.graph.output) == {"logits": ["batch", 3]}
    operators = [node.op_type for node in model.graph.node]
    assert set(operators) <= ASCEND
    assert "Shape" not in operators  # every shape is a constant
    assert len(operators) < 40
    text = (bundle / "model.onnx").read_bytes()
    assert b"site-packages" not in text
    assert str(Path(__file__).parents[2]).encode() not in text


def test_the_manifest_says_where_it_comes_from(finetuned):
    run, bundle = finetuned
    manifest = Bundle.open(bundle).manifest
    stored = json.loads((open_checkpoint(run).folder / "state.json").read_text(encoding="utf-8"))
    assert (manifest.task, manifest.source.kind) == ("classification", "classifier")
    assert manifest.source.checkpoint == str(open_checkpoint(run).folder)
    assert manifest.source.sha256 == stored["sha256"]["model.safetensors"]
    assert list(manifest.labels) == LABELS
    assert (manifest.preprocessing.mean, manifest.preprocessing.std) == (MEAN, STD)
    assert manifest.preprocessing.cover == (54, 73)
    assert manifest.versions["torch"] in torch.__version__  # which may end in +cpu
    operators = [node.op_type for node in onnx.load(bundle / "model.onnx").graph.node]
    assert manifest.models["float32"].operators == {name: operators.count(name) for name in operators}
    cases = {(case.images, case.batch) for case in manifest.parity.cases}
    assert cases == {(kind, batch) for kind in ("random", "natural") for batch in (1, 2, 5, 8)}
    assert 0 < manifest.parity.max_abs < 1e-4
    assert manifest.parity.cosine > 0.99999


WITHOUT_TORCH = """
import importlib.machinery, importlib.metadata, sys, types
import onnxruntime

for name in ("torch", "torchvision", "timm", "onnxscript"):
    sys.modules[name] = None  # not found, and not importable
session = onnxruntime.InferenceSession(sys.argv.pop(1))
mindspore, module = types.ModuleType("mindspore"), types.ModuleType("module")
mindspore.__spec__ = importlib.machinery.ModuleSpec("mindspore", None)
forward = lambda x: dict(zip(["logits"], session.run(None, {"images": x})))
module.build_reference = lambda weights, outputs, image_size: (forward, "mindspore 2.10.0, cpu, float32")
sys.modules |= {"mindspore": mindspore, "ehm.backends.mindspore.export.module": module}
version = importlib.metadata.version
importlib.metadata.version = lambda name: "2.10.0" if name == "mindspore" else version(name)
from ehm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_torch_the_command_writes_the_same_file_and_compares_it_with_mindspore(finetuned, tmp_path):
    run, bundle = finetuned
    made = tmp_path / "bundle"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(bundle / "model.onnx"), "export", str(run), "--out", str(made)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Differs from mindspore by at most" in done.stdout
    assert (made / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    manifest = Bundle.open(made).manifest
    assert manifest.parity.reference == "mindspore 2.10.0, cpu, float32"
    assert set(manifest.versions) == {"ehm", "onnx", "onnxruntime", "mindspore"}
    assert Bundle.open(bundle).manifest.parity.reference == f"torch {torch.__version__}, cpu, float32"


def test_the_documented_snippet_runs(finetuned, photographs, capsys):
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    snippet = text.partition("```python\n")[2].partition("```")[0]
    for image in photographs:
        exec(snippet, {"bundle": finetuned[1], "image": image})
        (expected,) = predict(finetuned[1], image, top=1)
        assert capsys.readouterr().out.strip() == expected.classes[0][0]


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "numba", "scipy", "onnx", "onnxscript"}:
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
from ehm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_predicts_where_no_framework_can_be_imported(finetuned, photographs):
    files = [str(file) for file in photographs]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED, "predict", str(finetuned[1]), *files, "missing.png", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "1 of 5 images could not be read" in done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [entry["image"] for entry in found] == [*files, "missing.png"]
    assert [entry["classes"] for entry in found[:-1]] == [
        [{"label": name, "probability": share} for name, share in prediction.classes]
        for prediction in predict(finetuned[1], photographs)
    ]


def test_the_command_exports_the_same_bytes_without_a_word_of_the_exporters(encoder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "ehm.cli", "export", str(encoder[0]), "--out", str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, parity, last = done.stdout.splitlines()
    source = open_checkpoint(encoder[0]).folder
    what = f"Exporting features of {source} (pretrain, 48 x 48), target portable, opset 17, "
    assert first == f"{what}to {tmp_path / 'bundle'}"
    assert parity.startswith("Differs from torch by at most ")
    assert str(tmp_path / "bundle") in last
    assert (tmp_path / "bundle" / "model.onnx").read_bytes() == (encoder[1] / "model.onnx").read_bytes()
