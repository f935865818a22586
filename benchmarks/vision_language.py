"""Questions a second that an encoder learns from and answers through a language model: ehm beside transformers alone.

    python benchmarks/vision_language.py [--device cpu] [--language FOLDER] [--image-size 224] [--patch-size 16]
        [--width 192] [--depth 12] [--latents 32] [--batch-size 32] [--steps 4] [--most 16] [--rounds 3]
        [--clock wall|cpu]

Every row has a ViT and a Perceiver Resampler of the same sizes under the same frozen language model (a random Llama of
four layers and a thousand words if no --language is given), and the same images, questions and answers, which lie in
memory. "transformers" is the plain loop that its parts make: ViTModel, IdeficsPerceiverResampler, the language model's
own loss on embeddings that are padded and masked, AdamW, one prompt tokenized after the other; it answers one question
at a time. "in batches" pads questions on the left and answers a batch of them at once. "kept tokens" is
`cache_features` when every image has been seen once. "frozen" trains the resampler alone, "joint" the encoder too.

Columns are questions a second: --steps batches of training, and of answering as many questions as a batch has, with
--most tokens each; the best of --rounds, in which all rows take turns after one that does not count. --clock cpu with
OMP_NUM_THREADS=1 counts processor time, for a machine on which other jobs run. Loading of images is no part of it
(benchmarks/loader.py).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from ehm import backends
from ehm.backends.torch.engine.devices import get_device_module
from ehm.backends.torch.language.stand_in import create_language_model, create_word_tokenizer
from ehm.config import VisionLanguageConfig

HEAD_WIDTH = 64
RESAMPLER_DEPTH = 2
LR = 1e-4
WEIGHT_DECAY = 0.05
WORDS = [f"word{number}" for number in range(1000)]


class Questions:
    """Images (n, H, W, 3) of noise, with a prompt and an answer of random words about each."""

    def __init__(self, count: int, image_size: int) -> None:
        rng = np.random.default_rng(0)
        self.images: NDArray[np.uint8] = rng.integers(0, 256, (count, image_size, image_size, 3), dtype=np.uint8)
        self.prompts = [" ".join(rng.choice(WORDS, rng.integers(6, 14))) for _ in range(count)]
        self.answers = [" ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(count)]


class Plain(nn.Module):
    """The eyes of a language model, out of transformers' parts, and the loop that anybody would write around them."""

    def __init__(self, arguments: argparse.Namespace, language: Path, frozen: bool) -> None:
        super().__init__()
        heads = arguments.width // HEAD_WIDTH
        vit = transformers.ViTConfig(
            hidden_size=arguments.width,
            num_hidden_layers=arguments.depth,
            num_attention_heads=heads,
            intermediate_size=4 * arguments.width,
            image_size=arguments.image_size,
            patch_size=arguments.patch_size,
        )
        idefics = transformers.IdeficsConfig(
            vision_config={"embed_dim": arguments.width},
            perceiver_config={"use_resampler": True, "qk_layer_norms_perceiver": False},
        )
        self.frozen = frozen
        self.encoder = transformers.ViTModel(vit, add_pooling_layer=False).requires_grad_(not frozen)
        self.resampler = IdeficsPerceiverResampler(
            idefics, arguments.width, RESAMPLER_DEPTH, heads, HEAD_WIDTH, arguments.latents
        )
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(language)
        self.language = transformers.AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
        self.language.eval().requires_grad_(False)
        self.projection = nn.Linear(arguments.width, self.language.config.hidden_size)
        self.most = arguments.most
        self.to(arguments.device)
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=LR, weight_decay=WEIGHT_DECAY)

    def look(self, images: NDArray[np.uint8]) -> Tensor:
        """Compute visual tokens: (B, H, W, 3) -> (B, K, W)."""
        pixels = torch.from_numpy(images).to(self.projection.weight.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.encoder(pixel_values=pixels).last_hidden_state
        visual: Tensor = self.projection(self.resampler(tokens))
        return visual

    def train_step(self, images: NDArray[np.uint8], prompts: Sequence[str], answers: Sequence[str]) -> float:
        """Take an optimiser step; return the loss."""
        visual = self.look(images)
        embed = self.language.get_input_embeddings()
        rows = []
        labels = []
        for own, prompt, answer in zip(visual, prompts, answers, strict=True):
            asked = self.tokenize(prompt)
            said = torch.cat([self.tokenize(answer), asked.new_tensor([self.tokenizer.eos_token_id])])
            rows.append(torch.cat([own, embed(asked), embed(said)]))
            labels.append(torch.cat([asked.new_full((len(own) + len(asked),), -100), said]))
        embedded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        padded = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        lengths = torch.tensor([len(row) for row in rows], device=embedded.device)
        mask = torch.arange(embedded.shape[1], device=embedded.device)[None] < lengths[:, None]
        loss = self.language(inputs_embeds=embedded, attention_mask=mask.long(), labels=padded, use_cache=False).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach().item()

    @torch.no_grad()
    def answer(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[str]:
        """Return the likeliest words behind each prompt, all at once."""
        embed = self.language.get_input_embeddings()
        rows = []
        for own, prompt in zip(self.look(images), prompts, strict=True):
            rows.append(torch.cat([own, embed(self.tokenize(prompt))]))
        embedded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
        lengths = torch.tensor([len(row) for row in rows], device=embedded.device)
        places = torch.arange(embedded.shape[1], device=embedded.device)[None]
        mask = places >= embedded.shape[1] - lengths[:, None]
        ids = self.language.generate(
            inputs_embeds=embedded, attention_mask=mask.long(), max_new_tokens=self.most, do_sample=False
        )
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def answer_one_by_one(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[str]:
        """Return the likeliest words behind each prompt, one after the other."""
        return [self.answer(images[[row]], [prompt])[0] for row, prompt in enumerate(prompts)]

    def tokenize(self, text: str) -> Tensor:
        """Return the tokens of a text: (T,)."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, device=self.projection.weight.device)


def make_answerer(arguments: argparse.Namespace, language: Path, frozen: bool) -> Any:
    """Return ehm's learner of the same sizes, in float32."""
    heads = arguments.width // HEAD_WIDTH
    model = {"encoder": "vit_tiny", "width": arguments.width, "depth": arguments.depth, "heads": heads}
    sections = {
        "frozen": frozen,
        "model": {**model, "image_size": arguments.image_size, "patch_size": arguments.patch_size},
        "resampler": {
            "latents": arguments.latents,
            "depth": RESAMPLER_DEPTH,
            "heads": heads,
            "head_width": HEAD_WIDTH,
        },
        "language": {
            "source": str(language),
            "dtype": "float32",
            "most": arguments.most,
            "before": "",
            "after": "",
            "prompt": "{question}",
        },
        "optim": {"batch_size": arguments.batch_size, "dtype": "float32"},
    }
    config = VisionLanguageConfig.model_validate(sections)
    return backends.get(arguments.device).create_task_learner(config, 0)


def measure_rate(work: Callable[[], object], questions: int, arguments: argparse.Namespace) -> float:
    """Return how many questions a second ``work`` gets done, all that the device does included."""
    read_clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    synchronise(arguments.device)
    start = read_clock()
    work()
    synchronise(arguments.device)
    return questions / (read_clock() - start)


def synchronise(device: str) -> None:
    """Wait for an accelerator."""
    chosen = torch.device(device)
    if chosen.type != "cpu":
        get_device_module(chosen).synchronize()


def list_rows(
    arguments: argparse.Namespace, language: Path, folder: Path, questions: Questions
) -> dict[str, tuple[Callable[[slice], object], Callable[[slice], object] | None]]:
    """Return what trains on a part of the questions, and what answers them, for each row of the table."""

    def train_with(learner: Any, *rates: float) -> Callable[[slice], object]:
        def train(part: slice) -> object:
            return learner.train_step(questions.images[part], questions.prompts[part], questions.answers[part], *rates)

        return train

    def answer_with(answer: Callable[..., object]) -> Callable[[slice], object]:
        return lambda part: answer(questions.images[part], questions.prompts[part])

    plain = Plain(arguments, language, frozen=True)
    own = make_answerer(arguments, language, frozen=True)
    keeping = make_answerer(arguments, language, frozen=True)
    print(keeping.keep_features(folder, len(questions.images)))
    return {
        "transformers, frozen": (train_with(plain), answer_with(plain.answer_one_by_one)),
        "transformers, frozen, in batches": (train_with(plain), answer_with(plain.answer)),
        "ehm, frozen": (train_with(own, LR, WEIGHT_DECAY), answer_with(own.answer)),
        "ehm, frozen, kept tokens": (train_with(keeping, LR, WEIGHT_DECAY), answer_with(keeping.answer)),
        "transformers, joint": (train_with(Plain(arguments, language, frozen=False)), None),
        "ehm, joint": (train_with(make_answerer(arguments, language, frozen=False), LR, WEIGHT_DECAY), None),
    }


def run_benchmark(arguments: argparse.Namespace, language: Path, folder: Path) -> None:
    """Measure all rows in turn, and print the table."""
    size = arguments.batch_size
    questions = Questions(size * arguments.steps, arguments.image_size)
    parts = [slice(start, start + size) for start in range(0, size * arguments.steps, size)]
    rows = list_rows(arguments, language, folder, questions)
    best = {name: [0.0, 0.0] for name in rows}
    for train, answer in rows.values():
        for part in parts:  # all of them, for tokens to be kept
            train(part)
        if answer is not None:
            answer(parts[0])
    for _ in range(arguments.rounds):
        for name, (train, answer) in rows.items():
            rate = measure_rate(lambda train=train: list(map(train, parts)), size * len(parts), arguments)
            best[name][0] = max(best[name][0], rate)
            if answer is not None:
                rate = measure_rate(lambda answer=answer: answer(parts[0]), size, arguments)
                best[name][1] = max(best[name][1], rate)
    print(f"{torch.get_num_threads()} threads, {arguments.device}, float32, batches of {size}, {arguments.clock} time")
    print("\n| | trained on, questions/s | answered, questions/s |\n|---|---|---|")
    for name, (trained, answered) in best.items():
        print(f"| {name} | {trained:.1f} | {f'{answered:.1f}' if answered else ''} |")


def main() -> None:
    """Read the arguments, make a language model if none is named, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--language", type=Path)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=192, help=f"of the encoder, a multiple of {HEAD_WIDTH}")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--most", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        language = arguments.language or Path(folder) / "language"
        if arguments.language is None:
            torch.manual_seed(0)
            tokenizer = create_word_tokenizer(WORDS, torch.device("cpu"))
            create_language_model(tokenizer, 256, 4, 4, torch.device("cpu")).save_pretrained(language)
            tokenizer.save_pretrained(language)
        run_benchmark(arguments, language, Path(folder) / "kept")


if __name__ == "__main__":
    main()
