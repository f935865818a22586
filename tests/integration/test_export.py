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
import timm
import torch
from checkpoints import LABELS, MEAN, STD, classifier, pretrained, timm_vit
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms

from ehm.config import ModelSource
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export, parity, sources
from ehm.deploy.export.graphs import saving
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import BackendError, CheckpointError, ConfigError, ExportError
from ehm.storage.checkpoint import open_checkpoint
from ehm.storage.reading import hash_file

ASCEND = {
    *("Add", "Cast", "Concat", "Conv", "Div", "Erf", "Expand", "Flatten", "Gather", "Gemm", "Identity"),
    *(
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Pad",
        "Pow",
        "ReduceMean",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
    ),
    *("Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
}
"""Operators of a transformer that Ascend's converter registers (npu/cann_onnx_ops.tsv); Gelu and Attention are not."""


def only(outputs):
    """The one output of a bundle that has one."""
    (values,) = outputs.values()
    return values


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
        corners = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height), 3)
        grain = rng.integers(-20, 21, (height, width, 3))
        Image.fromarray(np.clip(np.asarray(corners) + grain, 0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def reference_logits(run, images):
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
        expected = reference_logits(run, images)
        assert np.ptp(expected, axis=0).min() > 0.01 or batch == 1  # the weights tell images apart
        assert np.abs(only(predictor.run(images)) - expected).max() < 1e-5


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
    logits = reference_logits(run, np.stack(inputs).astype(np.float32)).astype(np.float64)
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
    from ehm.data.transforms import EvalTransform

    prepare = transforms.Compose(
        [transforms.Resize(cover, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    )
    for file in photographs:
        image = Image.open(file).convert("RGB").resize((size + 40, size + 71))
        assert np.array_equal(EvalTransform((size, size))(image), np.asarray(prepare(image)))


def test_the_graph_is_what_other_runtimes_take(finetuned):
    _, bundle = finetuned
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]

    def shape(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert [(value.name, shape(value)) for value in model.graph.input] == [("images", ["batch", 3, 48, 64])]
    assert [(value.name, shape(value)) for value in model.graph.output] == [("logits", ["batch", 3])]
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
    assert (
        manifest.versions["torch"] == torch.__version__.partition("+")[0]
        or manifest.versions["torch"] in torch.__version__
    )
    operators = [node.op_type for node in onnx.load(bundle / "model.onnx").graph.node]
    assert manifest.models["float32"].operators == {name: operators.count(name) for name in operators}
    cases = {(case.images, case.batch) for case in manifest.parity.cases}
    assert cases == {(kind, batch) for kind in ("random", "natural") for batch in (1, 2, 5, 8)}
    assert 0 < manifest.parity.max_abs < 1e-4
    assert manifest.parity.cosine > 0.99999


def test_a_probe_keeps_its_batch_norm(tmp_path):
    path = classifier(tmp_path / "run", (32, 32), frozen=True, pool="token")
    bundle = export(path, out=tmp_path / "bundle")
    model, tensors = timm_vit(path, (32, 32), num_classes=3, global_pool="token")
    model.head = torch.nn.Sequential(torch.nn.BatchNorm1d(32, eps=1e-6, affine=False), model.head)
    model.load_state_dict(tensors)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert np.abs(only(Predictor(bundle).run(images.numpy())) - model.eval()(images).numpy()).max() < 1e-5


def test_a_published_file_keeps_its_classifier(tmp_path):
    """MAE's fine-tuned files: under ``model``, ``fc_norm`` and ``head``; no labels inside, so classes are numbered."""
    path = classifier(tmp_path / "run", (32, 32))
    model, tensors = timm_vit(path, (32, 32), num_classes=3, global_pool="avg")
    model.load_state_dict(tensors)
    torch.save({"model": tensors}, tmp_path / "mae.pth")
    # 32 wide is no published width, so that the number of heads has to be said
    bundle = export(tmp_path / "mae.pth", out=tmp_path / "bundle", overrides=["model.heads=2"])
    manifest = Bundle.open(bundle).manifest
    assert (manifest.labels, manifest.source.kind) == (("0", "1", "2"), "file")
    assert manifest.source.sha256 == hash_file(tmp_path / "mae.pth")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert np.abs(only(Predictor(bundle).run(images.numpy())) - model(images).numpy()).max() < 1e-5


def test_timms_models_export_by_name(tmp_path):
    """A convolutional network without attention, LayerNormalization or positions: nothing here is for ViTs alone."""
    name, given = "timm:test_resnet?pretrained=false", ["model.image_size=64", "target=onnxruntime"]
    bundle = export(name, head="multi", out=tmp_path / "bundle", overrides=given)
    manifest = Bundle.open(bundle).manifest
    assert (manifest.source.kind, len(manifest.labels), manifest.labels[0]) == ("timm", 1000, "tench, Tinca tinca")
    assert (manifest.target, manifest.models["float32"].domains) == ("portable", {})  # which is what torch writes
    assert [output.shape[1:] for output in manifest.outputs] == [(1000,), (96,), (96, 2, 2)]
    counts = manifest.models["float32"].operators
    assert counts.get("GlobalAveragePool", 0) + counts.get("ReduceMean", 0) == 1  # shared by logits and features


def test_a_classifier_gives_features_and_large_weights_lie_beside_the_graph(finetuned, tmp_path, monkeypatch):
    run, _ = finetuned
    monkeypatch.setattr(saving, "EMBED_LIMIT", 10_000)
    bundle = export(run, out=tmp_path / "features", head="features")
    assert {path.name for path in bundle.iterdir()} == {"README.md", "manifest.json", "model.onnx", "model.onnx.data"}
    assert Bundle.open(bundle).manifest.labels == ()
    model, tensors = timm_vit(open_checkpoint(run).folder, (48, 64), num_classes=3, global_pool="avg")
    model.load_state_dict(tensors)
    images = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images), pre_logits=True).numpy()
    assert np.abs(only(Predictor(bundle).run(images.numpy())) - expected).max() < 1e-5
    with (bundle / "model.onnx.data").open("r+b") as file:
        file.seek(5000)
        file.write(b"\x01")
    with pytest.raises(ExportError, match=r"model\.onnx\.data: does not match"):
        Bundle.open(bundle)


@pytest.mark.parametrize("scale", [100, 0.01])
def test_a_network_whose_features_are_larger_or_smaller_is_as_right(finetuned, tmp_path, scale):
    """The same function: the norm before the head times ``scale``, and the head's weights divided by it."""
    run, _ = finetuned
    arrays = dict(load_file(open_checkpoint(run).folder / "model.safetensors"))
    for name, by in {"fc_norm.weight": scale, "fc_norm.bias": scale, "head.weight": 1 / scale}.items():
        arrays[name] = arrays[name] * by
    save_file(arrays, tmp_path / "model.safetensors")
    given = ["model.heads=2", "model.image_size=[48,64]"]
    bundle = export(tmp_path / "model.safetensors", head="multi", out=tmp_path / "bundle", overrides=given)
    found = Bundle.open(bundle).manifest.parity
    assert 0 < found.max_relative < 1e-5
    assert found.max_abs > 1e-4 or scale < 1  # as the features are large


@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
def test_an_error_counts_relative_to_the_size_of_its_output(scale):
    rng = np.random.default_rng(0)
    right = rng.standard_normal((2, 300))
    other = rng.standard_normal((2, 5))  # which is right, and of another size
    for error, refused in ((0.8e-4, False), (1.2e-4, True)):
        size = np.sqrt((right**2).mean())
        wrong = right.copy()
        wrong[1, 7] += error * size
        case = parity._compare_case("random", [(right * scale, wrong * scale), (other, other)])
        assert case.max_relative == pytest.approx(error)
        assert case.max_abs == pytest.approx(error * size * scale)
        assert (case.max_relative > parity.TOLERANCE) == refused


def test_zeros_are_zeros_in_both():
    zeros, tiny = np.zeros((2, 3)), np.full((2, 3), 1e-9)
    assert parity._compare_case("random", [(zeros, zeros)]).max_relative == 0
    assert parity._compare_case("random", [(zeros, tiny)]).max_relative > 1


@pytest.mark.parametrize(("found", "message"), [(np.nan, "not finite"), (np.inf, "not finite"), (1.0, "gives")])
def test_parity_sees_what_a_maximum_would_miss(found, message):
    outputs = np.full((2, 3), found)
    with pytest.raises(ExportError, match=message):
        parity._compare_case("random", [(np.ones((2, 4)) if found == 1 else np.ones((2, 3)), outputs)])


def test_another_image_size_resamples_the_positions(encoder, tmp_path):
    run, _ = encoder
    bundle = export(run, out=tmp_path / "larger", overrides=["model.image_size=[64,96]", "opset=18"])
    manifest = Bundle.open(bundle).manifest
    assert manifest.input.shape == ("batch", 3, 64, 96)
    assert onnx.load(bundle / "model.onnx").opset_import[0].version == manifest.models["float32"].opset == 18


def nothing_left(folder):
    return list(folder.iterdir()) == []


def test_one_wrong_weight_stops_the_export_and_leaves_nothing(encoder, tmp_path, monkeypatch):
    def spoil(model, path):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "norm.weight")
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[5] += 0.01
        tensor.raw_data = values.tobytes()
        save(model, path)

    save = saving.save
    monkeypatch.setattr(saving, "save", spoil)
    with pytest.raises(
        ExportError, match=r"parity: the exported model differs from torch by 0\.0.* nothing was written"
    ):
        export(encoder[0], out=tmp_path / "bundle")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"head": "classifier"}, CheckpointError, "a pretrained encoder has no classifier; ehm finetune gives it one"),
        ({"head": "segmenter"}, ConfigError, "expected one of auto, classifier, features, patches, multi"),
        ({"overrides": ["opset=16"]}, ConfigError, "opset: .* greater than or equal to 17"),
        ({"overrides": ["model.image_size=50"]}, ConfigError, "patch size 16"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_leave_nothing(encoder, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        export(encoder[0], out=tmp_path / "bundle", **arguments)
    assert nothing_left(tmp_path)


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        export(tmp_path / "nowhere", out=tmp_path / "bundle")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("absent", "checkpoint", "error", "message"),
    [
        ({"onnx"}, "RUN", BackendError, r"needs onnx; pip install .*\[export\]' installs what is missing"),
        (
            {"onnx", "torch", "mindspore"},
            "RUN",
            BackendError,
            r"needs onnx, torch or MindSpore; pip .*\[torch,export\]' or .*\[mindspore,export\]' installs",
        ),
        (
            {"onnxscript", "torch"},
            "timm:test_resnet",
            BackendError,
            r"needs torch, onnxscript; .*\[torch,export\]'",
        ),
        (
            {"timm", "mindspore"},
            "RUN",
            BackendError,
            r"neither torch nor MindSpore is there; pip .*\[torch\]' or pip .*\[mindspore\]'",
        ),
        ({"torch"}, "mae.pth", CheckpointError, r"mae\.pth: not a file of tensors that can be read safely"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(encoder, tmp_path, monkeypatch, absent, checkpoint, error, message):
    (tmp_path / "mae.pth").write_bytes(b"anything")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name in absent else True)
    with pytest.raises(error, match=message):
        export(encoder[0] if checkpoint == "RUN" else checkpoint, out=tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["mae.pth"]


WITHOUT_TORCH = """
import importlib.machinery, importlib.metadata, sys, types
import onnxruntime

for name in ("torch", "torchvision", "timm", "onnxscript"):
    sys.modules[name] = None  # not found, and not importable
session = onnxruntime.InferenceSession(sys.argv.pop(1))
mindspore, module = types.ModuleType("mindspore"), types.ModuleType("module")
mindspore.__spec__ = importlib.machinery.ModuleSpec("mindspore", None)
forward = lambda x: dict(zip(["logits"], session.run(None, {"images": x})))
module.reference = lambda weights, outputs, image_size: (forward, "mindspore 2.10.0, cpu, float32")
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


def test_a_vit_that_lacks_a_part_of_its_form_is_refused(tmp_path):
    path = classifier(tmp_path / "run", (32, 32))
    scaled = {**load_file(path / "model.safetensors"), "blocks.0.ls1.gamma": torch.ones(32)}
    save_file(scaled, tmp_path / "scaled.safetensors")
    with pytest.raises(CheckpointError, match=r"scaled\.safetensors: .*blocks\.0\.ls2\.gamma is missing"):
        export(tmp_path / "scaled.safetensors", out=tmp_path / "bundle", overrides=["model.heads=2"])


def test_a_run_that_started_from_one_of_timms_models_goes_through_torch(tmp_path):
    source = ModelSource(init="timm:test_vit?pretrained=false", image_size=32)
    path = classifier(tmp_path / "run", None, model=source)
    bundle = export(path, out=tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    assert (manifest.source.kind, manifest.labels) == ("classifier", tuple(LABELS))
    assert "onnxscript" in manifest.versions
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    model.load_state_dict(load_file(path / "model.safetensors"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert np.abs(only(Predictor(bundle).run(images.numpy())) - model.eval()(images).numpy()).max() < 1e-5


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
