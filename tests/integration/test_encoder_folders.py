"""The encoder of a run on the command line, loaded by timm and transformers from the run's folder."""

import os

import pytest
import timm
import torch
import yaml
from tiny import RUN, TINY

from ehm.backends.torch.models.loading import load_model
from ehm.cli import main
from ehm.config import ModelSource


def run(command, out, settings):
    options = [f"--set={name}={value}" for name, value in settings.items()]
    assert main([command, "--device", "cpu", "--out", str(out), *options]) == 0


def test_runs_end_with_folders_that_others_load_by_name(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    pretrained = tmp_path / "pretrain"
    fine_tuned = tmp_path / "finetune"
    settings = RUN | {"data.source": stripes, "optim.epochs": 1, "optim.warmup_epochs": 0}
    run("train", pretrained, TINY | settings)
    run("finetune", fine_tuned, settings | {"model.init": pretrained, "model.image_size": 32})
    said = "".join(capsys.readouterr().out.split())
    for folder in (pretrained, fine_tuned):
        assert f"{folder}/encoder,{folder}/encoder_hf" in said
    assert (pretrained / "encoder/model.safetensors").samefile(pretrained / "encoder.safetensors")

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = load_model(ModelSource(init=str(pretrained)), fc_norm=False).model.eval()(images)
        theirs = timm.create_model(f"local-dir:{pretrained / 'encoder'}", pretrained=True).eval()(images)
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
        tokens = transformers.AutoModel.from_pretrained(pretrained / "encoder_hf")(images).last_hidden_state
        torch.testing.assert_close(tokens[:, 1:].mean(dim=1), ours, rtol=1e-5, atol=1e-5)

        ours = load_model(ModelSource(init=str(fine_tuned)), classes=2).model
        classifier = timm.create_model(f"local-dir:{fine_tuned / 'encoder'}", pretrained=True).eval()
        assert classifier.pretrained_cfg["label_names"] == ["across", "down"]
        kind = transformers.AutoModelForImageClassification
        twin = kind.from_pretrained(fine_tuned / "encoder_hf").eval()
        assert twin.config.id2label == {0: "across", 1: "down"}
        torch.testing.assert_close(twin(images).logits, classifier(images), rtol=1e-5, atol=1e-5)
        features = ours.eval().forward_features(images)[:, 1:].mean(dim=1)
        pooled = classifier.forward_head(classifier.forward_features(images), pre_logits=True)
        torch.testing.assert_close(pooled, ours.fc_norm(features), rtol=1e-5, atol=1e-5)

    card = (fine_tuned / "encoder/README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["tags"] == ["timm", "vision", "evolved"]
    assert front["datasets"] == ["stripes"]
    lines = card.partition("## Training\n\n")[2].splitlines()
    assert lines[0].startswith("- Fine-tuned to 2 classes on stripes")
    assert lines[1].startswith("- Pretrained without labels by mae")
    assert lines[2] == "- Before that, nothing: the first weights were random."


def test_a_network_of_timms_keeps_its_name(stripes, tmp_path, capsys):
    out = tmp_path / "finetune"
    settings = RUN | {"data.source": stripes, "optim.epochs": 1, "optim.warmup_epochs": 0, "run.max_steps": 1}
    run("finetune", out, settings | {"model.init": "timm:test_convnext?pretrained=false", "model.image_size": 64})
    assert "no encoder_hf/: the network is one of timm's" in capsys.readouterr().out
    loaded = timm.create_model(f"local-dir:{out / 'encoder'}", pretrained=True).eval()
    assert loaded.pretrained_cfg["architecture"] == "test_convnext"
    ours = load_model(ModelSource(init=str(out)), classes=2).model.eval()
    for name, value in ours.state_dict().items():
        if not name.startswith(loaded.pretrained_cfg["classifier"]):
            torch.testing.assert_close(loaded.state_dict()[name], value)
    # the weights of others of that name are not those of this run
    assert "base_model" not in (out / "encoder/README.md").read_text(encoding="utf-8")
