"""The commands with a ViT in the relative form and with a Swin: from pretraining to bundles, against timm's classes."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from tiny import RUN

from ehm.analysis.inspect import inspect
from ehm.analysis.model import InspectedModel
from ehm.backends.torch.export.module import load_module
from ehm.backends.torch.learners.encoder import TorchEncoder
from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.config import MaskConfig, ModelSource, TrainConfig
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.errors import ConfigError
from ehm.models.opening import open_model
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.classification.probe import probe
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune
from ehm.training.pretrain import train

ENCODERS = {
    "vit": {"encoder": "vit_tiny", "patch_size": 8, "model.width": 24, "model.depth": 2, "model.heads": 3},
    "swin": {
        "encoder": "swin_tiny",
        "patch_size": 2,
        "model.width": 12,
        "model.depth": "[2, 1]",
        "model.heads": "[1, 3]",
        "model.window": 4,
    },
}
SWIN = {"embed_dim": 12, "depths": (2, 1), "num_heads": (1, 3), "window_size": 4, "patch_size": 2}
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8, "init_values": 0.1}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def by_onnxruntime(bundle):
    """Return the outputs of ONNX Runtime for ``PIXELS``."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"images": PIXELS.numpy()})


def timms(kind, **options):
    """timm's own class of the same sizes."""
    if kind == "swin":
        return SwinTransformer(img_size=32, **SWIN, **options).eval()
    return Beit(img_size=32, **VIT, use_abs_pos_emb=False, use_rel_pos_bias=True, **options).eval()


def settings(**values):
    return [f"{key}={value}" for key, value in values.items()]


def pretrain(kind, images, out, **values):
    sizes = {"image_size": 32, "objective": "simmim", "mask.unit": 16, "mask.blocks": 3, "data.source": images}
    given = settings(**{**RUN, **ENCODERS[kind], **sizes, "optim.base_lr": 0.01, **values})
    return train(overrides=given, out=out)


@pytest.fixture(scope="module", params=list(ENCODERS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sixteen pictures of two classes, each in its folder."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (folder / name).mkdir()
        for index in range(8):
            pixels = rng.integers(0, 128, (40, 36, 3), dtype=np.uint8) + np.uint8(127 * (name == "light"))
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(kind, pictures, tmp_path_factory):
    """A pretraining run by SimMIM."""
    return pretrain(kind, pictures, tmp_path_factory.mktemp("run") / kind)


def finetune_settings(run, pictures, **values):
    given = {
        **{key: value for key, value in RUN.items() if key != "optim.epochs"},
        "model.init": run.out,
        "model.image_size": 32,
        "data.source": pictures,
        "optim.epochs": 1,
        "folds": 2,
        **values,
    }
    return settings(**given)


@pytest.fixture(scope="module")
def classifier(run, pictures, tmp_path_factory):
    """Two steps of fine-tuning."""
    return finetune(overrides=finetune_settings(run, pictures), out=tmp_path_factory.mktemp("classifier"))


@torch.inference_mode()
def test_the_encoder_of_a_run_loads_into_timm_strictly(kind, run):
    model = timms(kind, num_classes=0, **({} if kind == "swin" else {"use_fc_norm": False}))
    model.load_state_dict(load_file(run.encoder), strict=True)
    sizes = {"image_size": (32, 32), "window": 4} if kind == "swin" else {}  # which a bare file of a Swin leaves open
    for source, expected in ((run.out, "pretrain"), (run.encoder, "file")):
        opened = load_module(ModelSource(init=str(source), **sizes))
        assert (opened.provenance.kind, opened.provenance.labels) == (expected, ())
        torch.testing.assert_close(opened.model(PIXELS), model(PIXELS))


def test_fine_tuning_makes_a_classifier_that_is_measured_exported_and_opened(kind, run, classifier, pictures, tmp_path):
    assert classifier.checkpoint.name == "step-00000002"
    assert evaluate(classifier.out).top1 == classifier.report.top1
    bundle = export(classifier.out, head="multi", out=tmp_path / "bundle")
    assert Bundle.open(bundle).manifest.labels == ("dark", "light")
    arrays = open_checkpoint(classifier.out).model
    model = timms(kind, num_classes=2)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    logits, features, patches = by_onnxruntime(bundle)
    tokens = model.forward_features(PIXELS)
    grid = tokens.permute(0, 3, 1, 2) if kind == "swin" else model.fc_norm(tokens)[:, 1:].mT.unflatten(2, (4, 4))
    np.testing.assert_allclose(logits, model(PIXELS).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(features, model.forward_head(tokens, pre_logits=True).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(patches, grid.detach().numpy(), atol=1e-5)
    assert not np.array_equal(arrays["patch_embed.proj.weight"], load_file(run.encoder)["patch_embed.proj.weight"])


def test_a_probe_measures_it_and_is_opened(kind, run, pictures, tmp_path):
    pool = {"pool": "avg"} if kind == "swin" else {}
    given = finetune_settings(run, pictures, **pool)
    result = probe(overrides=[*given, "neighbours=3"], out=tmp_path / "probe")
    assert 0 <= result.neighbours.top1 <= 1
    arrays = open_checkpoint(tmp_path / "probe").model
    opened = load_module(ModelSource(init=str(tmp_path / "probe")))
    assert any(isinstance(part, torch.nn.BatchNorm1d) for part in opened.model.modules())
    own = opened.model.state_dict()
    assert own.keys() == arrays.keys()
    assert all(np.array_equal(own[name].numpy(), array) for name, array in arrays.items())
    encoder = load_file(run.encoder)
    assert all(np.array_equal(arrays[name], value) for name, value in encoder.items())
    if kind == "swin":
        with pytest.raises(ConfigError, match="pool token: a Swin has no class token"):
            probe(overrides=finetune_settings(run, pictures, pool="token"), out=tmp_path / "token")


def test_pretraining_goes_on_from_a_run_and_resumes_without_it(kind, run, pictures, tmp_path, capsys):
    first = tmp_path / "first"
    given = {"run.max_steps": 1, "model.init": run.out, "optim.base_lr": 1e-12, "optim.ema_decay": 0.9}
    pretrain(kind, pictures, first, **given)
    said = " ".join(capsys.readouterr().out.split())
    assert f"begins with the weights of {run.out}" in said
    before, state = open_checkpoint(run.out).model, open_checkpoint(first).state
    assert before.keys() == state.model.keys()
    for name, array in before.items():
        np.testing.assert_allclose(state.model[name], array, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(state.optimizer[f"ema/{name}"], array, atol=1e-6, err_msg=name)
    (tmp_path / "encoder.safetensors").write_bytes(run.encoder.read_bytes())
    second = tmp_path / "second"
    given = {"run.max_steps": 1, "model.init": tmp_path / "encoder.safetensors"}
    pretrain(kind, pictures, second, **given)
    said = " ".join(capsys.readouterr().out.split())
    assert "starts afresh: decoder (2 tensors), mask_token" in said
    (tmp_path / "encoder.safetensors").unlink()
    train(overrides=["run.max_steps=2"], out=second, resume=True)
    assert open_checkpoint(second).folder.name == "step-00000002"


def test_an_encoders_file_says_how_its_images_were_normalised(kind, pictures, tmp_path):
    mean = [0.1, 0.2, 0.3]
    out = pretrain(kind, pictures, tmp_path / "run", **{"data.mean": mean}).encoder
    assert open_model(ModelSource(init=str(out))).provenance.inputs.mean == tuple(mean)


def test_pretraining_goes_on_from_a_fine_tuned_encoder(kind, classifier, pictures, tmp_path, capsys):
    pretrain(kind, pictures, tmp_path / "on", **{"run.max_steps": 1, "model.init": classifier.out})
    said = " ".join(capsys.readouterr().out.split())
    assert ("norm (2 tensors)" in said.partition("starts afresh:")[2].partition("not used")[0]) == (kind == "vit")


def test_an_encoder_sees_the_similarity_of_its_runs_learner(kind, run):
    """Units of the learner's own model, which has one table for all blocks, and of timm's class downstream."""
    opened = open_checkpoint(run.out)
    state = opened.state
    meta = opened.metadata
    learner = TorchLearner(TrainConfig.model_validate(meta["config"]), torch.device("cpu"))
    learner.load(state)
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    encoder = TorchEncoder(ModelSource(init=str(run.out)), torch.device("cpu"))
    model = InspectedModel(encoder, "", "evolved", MaskConfig(blocks=3), side=2 if kind == "vit" else 4)
    expected = np.concatenate(list(learner.prepare_batch(images).compute_similarity()))
    assert expected.shape == (3, 4, 4)
    np.testing.assert_allclose(model.compute_similarity(images), expected, atol=1e-6)
    if kind == "vit":
        np.testing.assert_allclose(
            model.compute_saliency(images),
            np.concatenate(list(learner.prepare_batch(images).compute_saliency())),
            atol=1e-6,
        )


def test_pictures_show_the_mask_units_of_the_run(kind, run, pictures, tmp_path):
    files = sorted((pictures / "dark").iterdir())[:2]
    for page in ("hierarchy", "masks"):
        assert inspect(page, files, checkpoint=run.out, out=tmp_path)[0].is_file()
    if kind == "vit":
        assert inspect("attention", files, checkpoint=run.out, out=tmp_path)[0].is_file()
        return
    with pytest.raises(ConfigError, match=r"attention needs a ViT of a family in docs/weights.md"):
        inspect("attention", files, checkpoint=run.out, out=tmp_path)


@torch.inference_mode()
def test_the_folders_of_a_run_load_by_name(kind, run, classifier):
    transformers = pytest.importorskip("transformers")
    for out in (run.out, classifier.out):
        theirs = timm.create_model(f"local-dir:{out / 'encoder'}", pretrained=True).eval()(PIXELS)
        if out == run.out:
            encoder = transformers.AutoModel.from_pretrained(out / "encoder_hf").eval()
            outputs = encoder(PIXELS)
            features = outputs.pooler_output if kind == "swin" else outputs.last_hidden_state[:, 1:].mean(dim=1)
        else:
            encoder = transformers.AutoModelForImageClassification.from_pretrained(out / "encoder_hf").eval()
            features = encoder(PIXELS).logits
        torch.testing.assert_close(features, theirs, rtol=1e-5, atol=1e-5)
