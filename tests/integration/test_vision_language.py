"""``--task vision_language`` from words alone to answers about images: what it learns, and that it can be stopped."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from question_files import COLOURS, GVTBENCH_COUNT, write_coco, write_easy_vqa, write_image, write_json

from ehm.analysis.answerer import choose_questions, open_answerer
from ehm.analysis.inspect import inspect
from ehm.backends.torch.language.frozen import FrozenLanguageModel
from ehm.backends.torch.models.loading import load_model
from ehm.cli import main
from ehm.config import LanguageTrainingConfig, ModelSource, VisionLanguageConfig
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.predict.command import predict
from ehm.errors import CheckpointError, ConfigError, DataError
from ehm.models.opening import open_model
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune
from ehm.training.language import train_language_model

pytest.importorskip("transformers")
COLOUR = "what color is the shape?"
SHOWN = {"before": "The image shows a ", "after": "."}


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    root = write_easy_vqa(tmp_path_factory.mktemp("questions"))
    for number, colour in enumerate(COLOURS):  # others than those to train on
        write_image(root / "test" / "images" / f"{number}.png", colour, (10, 10))
    return root


def language_config(questions, **settings):
    optim = {"steps": 60, "batch_size": 16, "base_lr": 0.08, "warmup_steps": 5, "dtype": "float32"}
    values = {"data": {"source": str(questions)}, "width": 32, "depth": 1, "heads": 2, "optim": optim}
    return LanguageTrainingConfig.model_validate({**values, "run": {"trackers": []}, **settings})


@pytest.fixture(scope="module")
def language(questions, tmp_path_factory):
    """A language model that has read of red, blue and green circles."""
    return train_language_model(
        language_config(questions), device="cpu", out=tmp_path_factory.mktemp("language") / "run"
    )


def config(questions, language, **sections):
    values = {
        "model": {"encoder": "vit_tiny", "width": 24, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8},
        "frozen": True,
        "resampler": {"latents": 2, "depth": 1, "heads": 2, "head_width": 8},
        "language": {"source": str(language.out), "dtype": "float32", "most": 4, **SHOWN},
        "data": {"source": str(questions), "crop_scale": [1, 1], "flip": False, "workers": 0},
        "optim": {"steps": 60, "batch_size": 9, "base_lr": 0.6, "warmup_steps": 5, "dtype": "float32"},
        "run": {"trackers": [], "measure_every": 100, "checkpoint_every": 100},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return VisionLanguageConfig.model_validate(values)


@pytest.fixture(scope="module")
def trained(questions, language, tmp_path_factory):
    return finetune(config(questions, language), device="cpu", out=tmp_path_factory.mktemp("trained") / "run")


def test_a_language_model_reads_what_it_is_told(language, capsys):
    assert language.reading.with_facts == 1.0
    assert language.reading.without_facts < 0.9  # whether a shape is red, and which colour it has, is not known
    assert json.loads((language.out / "metrics.json").read_text())["with_facts"] == 1.0
    assert main(["language", "train", "--out", str(language.out)]) == 2
    assert "holds a language model already" in capsys.readouterr().err


def test_it_sees_what_words_alone_do_not_tell(trained):
    (benchmark,) = trained.report.benchmarks
    accuracies = {kind.name: (kind.accuracy, kind.blank, kind.commonest) for kind in benchmark.kinds}
    assert accuracies["colour"][0] == 1.0
    assert accuracies["colour"][1] == accuracies["colour"][2] == pytest.approx(1 / 3)
    assert accuracies["shape"] == (1.0, 1.0, 1.0)
    assert trained.metrics["accuracy"] == trained.report.score == 1.0
    stored = json.loads((trained.out / "metrics.json").read_text())
    assert stored["accuracy_blank"] == benchmark.blank < 1
    rows = json.loads((trained.out / "predictions.json").read_text())
    assert {row["pred"] for row in rows} >= {"red", "blue", "green", "circle", "yes", "no"}
    assert "Vision-language" in (trained.out / "report.html").read_text()


def test_the_checkpoint_is_the_eyes_alone_and_knows_its_language_model(trained, language, questions, tmp_path):
    checkpoint = open_checkpoint(trained.checkpoint)
    assert {name.partition(".")[0] for name in checkpoint.model} == {"encoder", "resampler"}
    assert checkpoint.metadata["language"]["width"] == 32
    moved = language.out.rename(tmp_path / "moved")
    try:
        with pytest.raises(ConfigError, match=r"language\.source .*: no such folder"):
            evaluate(trained.out, device="cpu")
        report = evaluate(
            trained.out, device="cpu", overrides=[f"language.source={moved}", "blank=false"], out=tmp_path / "figures"
        )
        assert report.score == 1.0
        assert report.figures["accuracy_blank"] is None
        assert len(json.loads((tmp_path / "figures" / "predictions.json").read_text())) == 9
    finally:
        moved.rename(language.out)
    other = train_language_model(
        language_config(questions, optim={"steps": 1, "dtype": "float32"}), device="cpu", out=tmp_path / "other"
    )
    with pytest.raises(CheckpointError, match="has other weights; name the folder of that model"):
        evaluate(trained.out, device="cpu", overrides=[f"language.source={other.out}"])


def test_a_resumed_run_ends_with_the_same_weights(questions, language, tmp_path):
    optim = {"steps": 6, "warmup_steps": 0}
    whole = config(questions, language, frozen=False, optim=optim, data={"flip": True, "crop_scale": [0.5, 1]})
    ends = []
    finetune(whole, device="cpu", out=tmp_path / "whole")
    stopped = whole.model_copy(update={"run": whole.run.model_copy(update={"max_steps": 3})})
    finetune(stopped, device="cpu", out=tmp_path / "parts")
    finetune(whole, device="cpu", out=tmp_path / "parts", resume=True)
    for name in ("whole", "parts"):
        ends.append(open_checkpoint(tmp_path / name).state)
    for arrays, others in ((ends[0].model, ends[1].model), (ends[0].optimizer, ends[1].optimizer)):
        assert arrays.keys() == others.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, others[name], err_msg=name)


def test_kept_tokens_change_no_weights_also_if_a_run_is_resumed(questions, language, tmp_path, capsys):
    kept = config(questions, language, optim={"steps": 6, "warmup_steps": 0})
    plain = kept.model_copy(update={"cache_features": "off"})
    finetune(plain, device="cpu", out=tmp_path / "plain")
    assert "the encoder's tokens" not in capsys.readouterr().out
    stopped = kept.model_copy(update={"run": kept.run.model_copy(update={"max_steps": 3})})
    finetune(stopped, device="cpu", out=tmp_path / "kept")
    finetune(kept, device="cpu", out=tmp_path / "kept", resume=True)
    # three images to train on, as many to measure on, and the blank one
    assert capsys.readouterr().out.count("the encoder's tokens of 7 images take") == 2
    expected = open_checkpoint(tmp_path / "plain").state.model
    for name, array in open_checkpoint(tmp_path / "kept").state.model.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6, err_msg=name)
    figures = [json.loads((tmp_path / name / "metrics.json").read_text())["accuracy"] for name in ("plain", "kept")]
    assert figures[0] == figures[1]
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("plain", "kept")]
    assert names[0] == names[1]  # nothing of it is left


def test_a_resumed_run_has_the_same_questions_and_answers(questions, language, tmp_path):
    own = tmp_path / "questions"
    shutil.copytree(questions, own)
    settings = config(own, language, optim={"steps": 2, "warmup_steps": 0})
    finetune(settings, device="cpu", out=tmp_path / "run")
    file = own / "train" / "questions.json"
    written = file.read_text(encoding="utf-8")
    for old, new in (("circle", "square"), ("is there a red", "is there any red")):
        file.write_text(written.replace(old, new), encoding="utf-8")
        with pytest.raises(ConfigError, match="the words or answers of its 9 questions to train on have changed"):
            finetune(settings, device="cpu", out=tmp_path / "run", resume=True)
    file.write_text(written, encoding="utf-8")
    file = own / "test" / "questions.json"
    written = file.read_text(encoding="utf-8")
    file.write_text(written.replace("circle", "square"), encoding="utf-8")
    with pytest.raises(ConfigError, match="of its 9 questions to measure on have changed"):
        finetune(settings, device="cpu", out=tmp_path / "run", resume=True)
    file.write_text(written, encoding="utf-8")
    finetune(settings, device="cpu", out=tmp_path / "run", resume=True)


def test_answers_are_shown_with_where_the_latents_look(trained, questions, tmp_path, capsys):
    kept = json.loads((trained.out / "answers" / "answers.json").read_text())
    assert {row["kind"] for row in kept} == {"colour", "shape", "yes/no"}
    assert all(row["score"] == 1.0 and row["blank"] for row in kept)
    assert "what color is the shape?" in (trained.out / "report.html").read_text()
    pages = inspect("answers", [questions], checkpoint=trained.out, device="cpu", out=tmp_path)
    assert [path.name for path in pages] == ["answers.png", "answers-2.png"]
    image = questions / "test" / "images" / "0.png"
    (page,) = inspect(
        "answers", [image], checkpoint=trained.out, device="cpu", out=tmp_path, question="what color is the shape?"
    )
    with Image.open(page) as picture:
        assert picture.width > 900  # the image and two latents
    with pytest.raises(ConfigError, match="takes one set of questions, or images and --question"):
        inspect("answers", [image, image], checkpoint=trained.out, device="cpu", out=tmp_path)
    with pytest.raises(CheckpointError, match="holds no model that answers questions"):
        inspect("answers", [questions], checkpoint="timm:vit_tiny_patch16_224", device="cpu", out=tmp_path)


def test_sets_are_mixed_and_several_benchmarks_measured(questions, language, tmp_path):
    objects = write_coco(tmp_path / "coco")
    file = write_json(tmp_path / "coco_oc.json", GVTBENCH_COUNT)
    for row in GVTBENCH_COUNT:
        write_image(tmp_path / "val2017" / f"{row['image_id']:012d}.jpg")
    sets = [{"source": str(objects), "questions": "identify", "weight": 0.5}]
    measured = [{"source": str(questions), "name": "easy"}, {"source": str(objects), "questions": "identify"}]
    measured.append({"source": str(file)})
    settings = config(
        questions, language, benchmarks=measured, data={"sets": sets}, optim={"steps": 2, "warmup_steps": 0}
    )
    run = finetune(settings, device="cpu", out=tmp_path / "run")
    assert [(each.name, each.questions) for each in run.report.benchmarks] == [
        ("easy", 9),
        ("coco identify", 10),
        ("coco_oc", 2),
    ]
    assert len(json.loads((run.out / "predictions_coco_identify.json").read_text())) == 10
    assert "<h3>coco_oc, 2 questions</h3>" in (run.out / "report.html").read_text()
    alone = config(questions, language, data={"source": str(file)})
    with pytest.raises(DataError, match="has no validation part of its own; name other questions as benchmarks"):
        finetune(alone, device="cpu", out=tmp_path / "alone")


def test_an_inspected_answerer_says_what_it_is_asked(trained, questions):
    model = open_answerer(str(trained.out), "cpu")
    asked = choose_questions(model, str(questions), 4, seed=1)
    assert len(asked) == 4
    assert asked == choose_questions(model, str(questions), 4, seed=1) != choose_questions(model, str(questions), 4, 2)
    looks = model.learner.locate_latents(np.zeros((3, 16, 16, 3), np.uint8))
    assert looks.shape == (3, 2, 2, 2)
    assert ((looks.sum((2, 3)) > 0) & (looks.sum((2, 3)) < 1)).all()


def test_what_a_bundle_sees_gives_the_answers_of_the_checkpoint(trained, questions, language, tmp_path):
    bundle = Bundle.open(export(trained.out, out=tmp_path / "bundle", float16=True))
    manifest = bundle.manifest
    assert manifest.task == "visual_tokens"
    assert manifest.output("visual_tokens").shape == ("batch", 2, 32)
    assert manifest.language.prompt == "Question: {question} Answer:"
    assert "Eyes of a language model" in (bundle.path / "README.md").read_text()
    answerer, _ = FrozenLanguageModel.open(trained_language(trained), torch.device("cpu"))
    files = [questions / "test" / "images" / f"{number}.png" for number in range(3)]
    for precision in ("float32", "float16"):
        seen = torch.from_numpy(np.stack([each.visual_tokens for each in predict(bundle, files, precision=precision)]))
        assert answerer.answer(seen, [f"Question: {COLOUR} Answer:"] * 3) == ["red", "blue", "green"]
    features = Bundle.open(export(trained.out, out=tmp_path / "features", head="features"))
    assert features.manifest.task == "features"


def test_a_jointly_tuned_encoder_begins_another_task(questions, language, tmp_path):
    joint = config(questions, language, frozen=False, optim={"steps": 2, "warmup_steps": 0})
    run = finetune(joint, device="cpu", out=tmp_path / "joint")
    weights = open_model(ModelSource(init=str(run.out)))
    assert {f"encoder.{name}" for name in weights.arrays} == {
        name for name in open_checkpoint(run.out).model if name.startswith("encoder.")
    }
    loaded = load_model(ModelSource(init=str(run.out)), 3)
    assert loaded.model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


def trained_language(run):
    return VisionLanguageConfig.model_validate(open_checkpoint(run.checkpoint).metadata["config"]).language
