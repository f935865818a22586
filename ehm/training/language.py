"""``ehm language train``: train a tiny language model on text, for examples of the task vision_language.

A run's folder has ``config.yaml``, ``metrics.jsonl``, ``tensorboard/`` and, at the end, ``model/``, a folder in
Hugging Face's layout, and ``metrics.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ehm.backends.base import TextLearner
from ehm.config import LanguageTrainingConfig
from ehm.console import console
from ehm.data.sources.questions.layouts import open_questions
from ehm.errors import ConfigError
from ehm.models.language_folder import RUN_MODEL
from ehm.report.card import Card, render_card
from ehm.report.numbers import format_share
from ehm.report.overview import Tile
from ehm.storage.writing import replace_folder, write_json
from ehm.training.plan import RunPlan, plan_run
from ehm.training.run import Run, open_run
from ehm.training.schedule import learning_rate_at
from ehm.training.text_documents import Description, describe_facts, describe_images, draw_documents, list_texts

__all__ = ["DEFAULT_CONFIG", "LanguageResult", "train_language_model"]

DEFAULT_CONFIG = "easy_vqa/language"
DEFAULT_OUT = Path("runs/language")
_MEASURED_QUESTIONS = 1024
"""The approximate number of questions that are measured, spread evenly over the validation part."""
_QUESTIONS_AT_ONCE = 256
_LONGEST_ANSWER = 8
"""Tokens of an answer, at most."""


@dataclass(frozen=True)
class Reading:
    """Shares of right answers to ``questions``, with the sentence about the image in the prompt, and without it."""

    questions: int
    with_facts: float
    without_facts: float


@dataclass(frozen=True)
class LanguageResult:
    """The results of a run: its folder, the folder of the model, and its right answers."""

    out: Path
    model: Path
    reading: Reading

    def _repr_html_(self) -> str:
        tiles = [
            Tile("Right answers", format_share(self.reading.with_facts), f"{self.reading.questions:,} questions"),
            Tile("Without the sentence", format_share(self.reading.without_facts), "the same questions, guessed"),
        ]
        return render_card(Card(kind="Language model", tiles=tiles, places=[("Folder", self.out)]))


def train_language_model(
    config: LanguageTrainingConfig | str | Path | None = None,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> LanguageResult:
    """Train a tiny language model with the configuration ``config``: a file, the name of a shipped one, or an object.

    ``overrides`` are ``key=value`` strings, as for ``--set``. Raises EhmError on bad input.
    """
    folder = Path(out or DEFAULT_OUT)
    if (folder / RUN_MODEL).exists():
        raise ConfigError(f"--out {folder}: holds a language model already; name another folder, or remove it")
    run = open_run(LanguageTrainingConfig, DEFAULT_CONFIG, config, overrides, device, folder, is_resumable=False)
    if run.processes.size > 1:
        raise ConfigError("ehm language train: trains in one process, as the model is tiny; start it without torchrun")
    with run.explain_write_errors():
        return _train(run)


def _train(run: Run[LanguageTrainingConfig]) -> LanguageResult:
    config = run.config
    source = config.data.source
    train = describe_images(open_questions(config.data, "train"), config.text, source)
    val = describe_images(open_questions(config.data, "validation"), config.text, source)
    optim = config.optim
    plan = plan_run(optim, config.run, max(1, len(train) // optim.batch_size))
    model = run.backend.create_text_learner(config, list_texts(train, config.text))
    _print_start(run, plan, model, train)
    run.write_config()

    with run.open_log(plan.last, 0, "language") as log:
        for step in range(plan.last):
            documents = draw_documents(train, config.text, optim.batch_size, config.run.seed, step)
            lr = learning_rate_at(optim, step, plan.steps_per_epoch)
            metrics = model.train_step(documents, lr, optim.weight_decay)
            done = step + 1
            log.advance(done)
            if plan.is_log_due(done) or done == plan.last:
                values = {name: float(value) for name, value in metrics.items()}
                log.log(done, {**values, "lr": lr})

    folder = run.folder / RUN_MODEL
    with replace_folder(folder) as temporary:
        model.save(temporary)
    reading = measure_reading(model, val, config)
    path = write_json(run.folder / "metrics.json", {"model": str(folder), **asdict(reading)})
    console.print(
        f"Of {reading.questions:,} questions about images that it has not read of it answers {reading.with_facts:.1%} "
        f"rightly if it is told what the image shows, and {reading.without_facts:.1%} if it is not"
    )
    console.print(f"Language model: {folder}; figures: {path}")
    console.print(f"To use it: ehm finetune --task vision_language --set language.source={run.folder}")
    return LanguageResult(run.folder, folder, reading)


def measure_reading(model: TextLearner, descriptions: Sequence[Description], config: LanguageTrainingConfig) -> Reading:
    """Ask questions about images, with the sentence about the image in the prompt and without it."""
    asked = []
    for description in descriptions:
        asked += [(description, question) for question in description.questions if question.answers]
    asked = asked[:: max(1, len(asked) // _MEASURED_QUESTIONS)]
    shares = []
    for with_facts in (True, False):
        prompts = []
        for description, question in asked:
            sentence = describe_facts(description.facts if with_facts else "", config.text)
            prompts.append(f"{sentence} {config.text.words.format_prompt(question.text)}")
        answers: list[str] = []
        for start in range(0, len(prompts), _QUESTIONS_AT_ONCE):
            answers += model.answer(prompts[start : start + _QUESTIONS_AT_ONCE], _LONGEST_ANSWER)
        correct = 0
        for (_, question), answer in zip(asked, answers, strict=True):
            correct += answer.strip().lower() == question.answers[0].lower()
        shares.append(correct / len(asked))
    return Reading(len(asked), with_facts=shares[0], without_facts=shares[1])


def _print_start(
    run: Run[LanguageTrainingConfig], plan: RunPlan, model: TextLearner, train: Sequence[Description]
) -> None:
    optim = run.config.optim
    console.print(
        f"Training a language model of {model.parameters / 1e6:.2f} million parameters on text alone: a stand-in for a "
        f"real one, which knows {model.words} words"
    )
    console.print(
        f"  on {run.config.data.source}: descriptions of {len(train):,} images in words, {plan.describe(optim)}, batch "
        f"{optim.batch_size}, learning rate {optim.lr:.2e}; {run.describe_device()}"
    )
    console.print(f"  into {run.folder}")
