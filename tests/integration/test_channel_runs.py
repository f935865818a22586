"""From files of seven channels in 16 bits to a classifier that is served, by the commands."""

import io
import json

import numpy as np
import onnxruntime
import pytest
import tifffile
import torch
from server_requests import encode_tensor, send_request
from serving import running

from ehm.config import TrainConfig
from ehm.deploy.export import export
from ehm.deploy.predict.command import predict
from ehm.errors import ConfigError
from ehm.models.encoder_file import read_facts
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune
from ehm.training.pretrain import train

SETTINGS = (
    "encoder=vit_tiny", "model.width=24", "model.depth=2", "model.heads=2", "patch_size=8", "image_size=16",
    "mask.blocks=1", "model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2", "optim.steps=3",
    "optim.warmup_steps=1", "optim.batch_size=8", "run.trackers=[]", "data.workers=0", "watch.every=0",
)  # fmt: skip
MEANS = f"data.mean={[0.3] * 7}"
STDS = f"data.std={[0.1] * 7}"
TASK = ("optim.steps=4", "optim.warmup_steps=1", "optim.batch_size=8", "run.trackers=[]", "data.workers=0")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of two classes of GeoTIFF's kind, which differ in the last channels alone."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("land", "water")):
        (root / name).mkdir()
        for index in range(10):
            values = rng.normal(3000, 500, (20, 24, 7))
            values[..., 5:] += 3000 * number
            pixels = values.clip(0, 10000).astype(np.uint16)
            tifffile.imwrite(root / name / f"{index}.tif", pixels, photometric="minisblack", planarconfig="contig")
    return root


@pytest.fixture(scope="module")
def pretrained(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrain"
    formats = ("data.channels=[a, b, c, d, e, f, g]", "data.depth=16", "data.range=[0, 10000]", MEANS, STDS)
    train(overrides=[*SETTINGS, f"data.source={scenes}", *formats], out=out, device="cpu")
    return out


def test_checkpoints_and_encoder_say_the_channels(pretrained):
    config = TrainConfig.model_validate(open_checkpoint(pretrained).metadata["config"])
    assert config.spec.channels == 7
    facts = read_facts(pretrained / "encoder.safetensors")
    assert facts.spec == config.spec
    assert facts.inputs == config.data.inputs
    assert facts.inputs.pixels.names == tuple("abcdefg")
    assert facts.inputs.pixels.range == (0, 10000)
    described = json.loads((pretrained / "encoder" / "config.json").read_text())
    assert described["pretrained_cfg"]["input_size"] == [7, 16, 16]
    assert (pretrained / "pictures" / "reconstruction-00000003.png").is_file()


def test_a_classifier_takes_the_channels_of_its_encoder(scenes, pretrained, tmp_path):
    settings = [*TASK, f"model.init={pretrained}", f"data.source={scenes}", "optim.base_lr=0.05"]
    with pytest.raises(ConfigError, match=r"augment\.rand_augment: varies the colours .* 7 channels of 16 bits"):
        finetune(overrides=[*settings, "augment.rand_augment=rand-m9-mstd0.5-inc1"], out=tmp_path / "no", device="cpu")
    out = tmp_path / "task"
    finetune(overrides=[*settings, "augment.rand_augment=null"], out=out, device="cpu")
    report = evaluate(out, device="cpu")
    assert report.top1 == 1.0  # the classes differ by far more than the noise
    # elsewhere too the checkpoint says how images are read
    assert evaluate(out, device="cpu", overrides=[f"data.source={scenes}"]).top1 == 1.0


def test_a_run_goes_on_from_weights_of_other_channels(scenes, pretrained, tmp_path, capsys):
    overrides = [*SETTINGS, f"data.source={scenes}", f"model.init={pretrained}", "model.adapt_channels=repeat"]
    with pytest.raises(ConfigError, match=r"data\.mean: has 3 values, and there are 2 channels; ehm data stats"):
        train(overrides=[*overrides, "data.channels=2", "data.depth=16"], out=tmp_path / "no", device="cpu")
    for name in ("land", "water"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for index in range(4):
            values = tifffile.imread(scenes / name / f"{index}.tif")[..., 5:]
            np.save(tmp_path / "two" / name / f"{index}.npy", values)
    two = ("data.channels=2", "data.depth=16", "data.mean=[0.3, 0.3]", "data.std=[0.1, 0.1]", "optim.batch_size=4")
    train(overrides=[*overrides, *two, f"data.source={tmp_path / 'two'}"], out=tmp_path / "run", device="cpu")
    assert open_checkpoint(tmp_path / "run").model["patch_embed.proj.weight"].shape[1] == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "adapted from 7 to 2 channels: theirs are repeated (model.adapt_channels repeat)" in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["data.channels=0"], r"data\.channels.*should be a number from 1 to 64"),
        (["data.channels=[a, a]"], r"data\.channels.*as many different names"),
        (["data.depth=12"], r"data\.depth"),
        (
            ["data.channels=1", "data.mean=[0.5]", "data.std=[0.5]", "data.color_jitter=0.4"],
            r"data\.color_jitter: varies",
        ),
        (["data.depth=float"], r"depth float needs range"),
        (["data.window=true", "data.range=[0, 1]"], "window and range exclude each other"),
        (["objective=beit", "data.depth=16"], r"data\.channels and data\.depth: objective beit.* takes photographs"),
    ],
)
def test_what_does_not_go_together_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        train(overrides=["data.source=/nowhere", *wrong], device="cpu", out="/nowhere/run")


@pytest.fixture(scope="module")
def bundles(scenes, pretrained, tmp_path_factory):
    """Bundles of a classifier: one of normalised images, one whose graph takes pixels of any size."""
    root = tmp_path_factory.mktemp("bundles")
    settings = [*TASK, f"model.init={pretrained}", f"data.source={scenes}", "augment.rand_augment=null"]
    settings.append("model.image_size=16")
    finetune(overrides=settings, out=root / "task", device="cpu")
    triton = root / "triton"
    outside = export(root / "task", out=root / "outside", head="multi", int8=True, triton=triton)
    inside = export(root / "task", out=root / "inside", head="multi", overrides=["preprocessing=true"], triton=triton)
    return outside, inside, triton


def prepare_by_torch(values):
    """Return the model's input for the stored values (H, W, 7), computed by torch's own resize."""
    pixels = np.rint(values / 10000 * 65535)
    height, width = values.shape[:2]
    size = (18 * height // width, 18) if width < height else (18, 18 * width // height)
    planes = torch.from_numpy(pixels).float().permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True).clamp(0, 65535).round()
    top = round((size[0] - 16) / 2)
    left = round((size[1] - 16) / 2)
    cut = resized[:, :, top : top + 16, left : left + 16] / 65535
    return ((cut - 0.3) / 0.1).numpy()


def test_a_bundle_says_its_channels_and_predicts_from_files(scenes, bundles):
    outside, inside, triton = bundles
    rule = json.loads((inside / "manifest.json").read_text())["preprocessing"]
    assert rule["channel_names"] == list("abcdefg")
    assert (rule["depth"], rule["value_range"], rule["colour"]) == (16, [0, 10000], "none")
    files = [scenes / "land" / "0.tif", scenes / "water" / "3.tif"]
    session = onnxruntime.InferenceSession(outside / "model.onnx")
    for bundle in (outside, inside):
        for file, found in zip(files, predict(bundle, files, device="cpu"), strict=True):
            (logits,) = session.run(["logits"], {"images": prepare_by_torch(tifffile.imread(file))})
            expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
            by_label = dict(found.classes)
            np.testing.assert_allclose([by_label["land"], by_label["water"]], expected, atol=1e-3)
    assert "data_type: TYPE_UINT16 dims: [ -1, -1, 7 ]" in (triton / "inside" / "config.pbtxt").read_text()
    assert "data_type: TYPE_FP32 dims: [ 7, 16, 16 ]" in (triton / "outside" / "config.pbtxt").read_text()


def test_a_bundle_refuses_other_images_with_a_sentence(scenes, bundles, tmp_path):
    values = tifffile.imread(scenes / "land" / "0.tif")
    np.save(tmp_path / "five.npy", values[..., :5])
    np.save(tmp_path / "bytes.npy", (values >> 6).astype(np.uint8))
    fewer, shallow = predict(bundles[0], [tmp_path / "five.npy", tmp_path / "bytes.npy"], device="cpu")
    assert "and the model takes 7 channels of 16 bits from 0 to 10000" in fewer.error
    assert "data.depth 16 reads integers of 9 to 16 bits" in shallow.error


def test_a_server_takes_files_and_tensors_of_the_model_alone(scenes, bundles):
    outside, inside, _ = bundles
    file = scenes / "water" / "3.tif"
    values = tifffile.imread(file)
    pixels = np.rint(values / 10000 * 65535).astype(np.uint16)[None]
    with running([f"outside={outside}", f"inside={inside}"]) as (address, _):
        label, probability = predict(outside, file, device="cpu")[0].classes[0]
        for name in ("outside", "inside"):
            answer = send_request(address, "POST", f"/v1/classify?model={name}", file.read_bytes())
            assert answer.status == 200
            assert answer.body["classes"][0]["label"] == label
            assert answer.body["classes"][0]["probability"] == pytest.approx(probability, abs=1e-3)
            assert send_request(address, "POST", f"/v1/view?model={name}", file.read_bytes()).status == 200
        answer = send_request(address, "POST", "/v1/classify?model=inside", _encode_npy(values[..., :4]))
        assert answer.status == 422
        assert "has 4 channels of unsigned integers of 16 bits, and the model takes 7" in answer.body["error"]
        # tensors: the pixels of the file in the model's depth
        request = encode_tensor(pixels)
        answer = send_request(address, "POST", "/v2/models/inside/infer", request)
        assert answer.status == 200
        logits = next(output["data"] for output in answer.body["outputs"] if output["name"] == "logits")
        assert float(np.exp(max(logits)) / np.exp(logits).sum()) == pytest.approx(probability, abs=1e-3)
        for change, said in (
            ({"datatype": "FP32"}, "UINT16"),
            ({"shape": [1, 20, 24, 3]}, "7"),
            ({"data": [70000, *pixels.ravel()[1:].tolist()]}, "integers from 0 to 65535"),
        ):
            (tensor,) = json.loads(request)["inputs"]
            body = json.dumps({"inputs": [{**tensor, **change}]})
            answer = send_request(address, "POST", "/v2/models/inside/infer", body)
            assert answer.status == 400
            assert said in answer.body["error"]


def _encode_npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()
