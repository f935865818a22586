"""Probes of frozen features: the arithmetic of neighbours, a head that alone learns, and both from one command."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from ehm.analysis.neighbours import vote_by_neighbours
from ehm.backends.torch.learners.classification import TorchClassifier
from ehm.backends.torch.learners.encoder import TorchEncoder
from ehm.config import FinetuneConfig, ModelSource, ProbeConfig
from ehm.data import stratified_folds
from ehm.errors import ConfigError
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.classification.probe import probe
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune

CPU = torch.device("cpu")
MODEL = {"encoder": "vit_tiny", "width": 32, "depth": 2, "heads": 2, "image_size": 32, "patch_size": 8}


def probe_config(folder, **sections):
    values = {
        "model": MODEL,
        "data": {"source": str(folder), "crop_scale": [0.5, 1], "workers": 0},
        "optim": {"epochs": 10, "batch_size": 8, "base_lr": 3.0, "warmup_epochs": 1, "dtype": "float32"},
        "optimizer": "sgd",
        "pool": "avg",
        "neighbours": 5,
        "run": {"trackers": []},
    }
    return ProbeConfig.model_validate({**values, **sections})


@pytest.mark.parametrize("neighbours", [1, 4, 500])
def test_votes_are_those_of_a_plain_loop(neighbours):
    rng = np.random.default_rng(0)
    features = rng.normal(3, 1, (40, 6)).astype(np.float32)
    queries = rng.normal(3, 1, (300, 6)).astype(np.float32)
    labels = rng.integers(0, 3, 40)
    votes = vote_by_neighbours(features, labels, queries, 4, neighbours)
    mean = features.astype(float).mean(0)
    for query, row in zip(queries[::29], votes[::29], strict=True):
        cosines = []
        for feature, label in zip(features, labels, strict=True):
            a, b = query - mean, feature - mean
            cosines.append((float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)), label))
        expected = np.zeros(4)
        for cosine, label in sorted(cosines, reverse=True)[:neighbours]:
            expected[label] += math.exp(cosine / 0.07)
        assert row == pytest.approx(expected / expected.sum(), abs=1e-4)


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_the_head_alone_learns_behind_a_batch_norm(tmp_path, optimizer):
    config = FinetuneConfig.model_validate(
        {**probe_config(tmp_path).model_dump(exclude={"neighbours", "neighbours_pool"}), "optimizer": optimizer}
    )
    classifier = TorchClassifier(config, 3, CPU)
    before = classifier.state().model
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    features = TorchEncoder(ModelSource.model_validate(MODEL), CPU)
    for name in features.model.state_dict():
        features.model.state_dict()[name].copy_(torch.from_numpy(before[name]))
    seen = torch.from_numpy(features.compute_features(images))

    # the same steps on those features by hand
    norm = nn.BatchNorm1d(32, affine=False, eps=1e-6)
    head = nn.Linear(32, 3)
    head.weight.data.copy_(torch.from_numpy(before["head.1.weight"]))
    head.bias.data.zero_()
    assert before["head.1.weight"].std() == pytest.approx(0.01, rel=0.4)
    for _ in range(3):
        loss = nn.functional.cross_entropy(head(norm(seen)), torch.from_numpy(targets))
        assert float(classifier.train_step(images, targets, 0.0, 0.0)["loss"]) == pytest.approx(loss.item(), rel=1e-4)
    norm.eval()
    expected = head(norm(seen)).detach().numpy()
    np.testing.assert_allclose(classifier.compute_logits(images), expected, atol=1e-4)

    classifier.train_step(images, targets, 0.1, 0.0)
    after = classifier.state().model
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {
        "head.0.running_mean",
        "head.0.running_var",
        "head.0.num_batches_tracked",
        "head.1.weight",
        "head.1.bias",
    }


def test_one_command_measures_both_ways(stripes, tmp_path, capsys):
    """The encoder was fine-tuned on the very classes, so that both probes must find them."""
    config = FinetuneConfig.model_validate(
        {
            "model": MODEL,
            "data": {"source": str(stripes), "crop_scale": [0.5, 1], "workers": 0},
            "augment": {"rand_augment": None, "mixup": 0, "cutmix": 0, "random_erasing": 0},
            "layer_decay": 1.0,
            "optim": {"epochs": 12, "batch_size": 8, "base_lr": 0.1, "warmup_epochs": 1, "dtype": "float32"},
            "run": {"trackers": []},
        }
    )
    trained = finetune(config, device="cpu", out=tmp_path / "finetune")
    settings = probe_config(stripes, model={"init": str(trained.out)})
    result = probe(settings, device="cpu", out=tmp_path / "probe")
    assert result.linear.top1 > 0.9
    assert result.neighbours.top1 > 0.9
    held_out = stratified_folds([0] * 24 + [1] * 24, 5, seed=0) == 0
    assert result.linear.samples == result.neighbours.samples == held_out.sum()
    said = capsys.readouterr().out
    assert "Linear probing of" in said
    assert "5 nearest neighbours" in said
    written = json.loads((tmp_path / "probe" / "metrics.json").read_text())
    assert written["linear"]["top1"] == result.linear.top1
    assert written["neighbours"]["top1"] == result.neighbours.top1
    with pytest.raises(ConfigError, match="holds a run already; remove it to measure again, another --out"):
        probe(settings, device="cpu", out=tmp_path / "probe")

    # what the probe made is a classifier like any other
    assert open_checkpoint(result.checkpoint).metadata["kind"] == "classifier"
    assert evaluate(tmp_path / "probe", device="cpu") == result.linear


def test_attention_and_similarity_are_those_of_the_whole_softmax():
    encoder = TorchEncoder(ModelSource.model_validate({**MODEL, "image_size": (32, 48), "depth": 3}), CPU)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    assert encoder.grid == (4, 6)
    seen = []
    for block in encoder.model.blocks:  # the unfused path of timm's attention multiplies the softmax, which we record
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    encoder.compute_features(images)
    probabilities = [layer.numpy() for layer in seen]
    np.testing.assert_allclose(encoder.compute_attention(images), probabilities[-1], atol=1e-6)
    mean = np.mean([layer.mean(1) for layer in probabilities[:2]], axis=0)[:, 1:, 1:]
    np.testing.assert_allclose(encoder.compute_similarity(images, 2), (mean + mean.transpose(0, 2, 1)) / 2, atol=1e-6)
    convolutional = TorchEncoder(ModelSource(init="timm:resnet10t?pretrained=false", image_size=64), CPU)
    assert convolutional.compute_features(images).shape == (2, 512)
    with pytest.raises(ConfigError, match="attention needs a ViT"):
        convolutional.compute_attention(images)
