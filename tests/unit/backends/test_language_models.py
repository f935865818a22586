"""Frozen language models of four kinds beside transformers' own loss and generation, and folders that are refused."""

import sys

import pytest
import torch

from ehm.config.language import LanguageConfig
from ehm.errors import BackendError, ConfigError

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, models, normalizers  # noqa: E402
from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402

from ehm.backends.torch.language.frozen import FrozenLanguageModel  # noqa: E402
from ehm.backends.torch.language.opening import import_transformers  # noqa: E402
from ehm.backends.torch.language.prompts import PromptTokenizer  # noqa: E402
from ehm.backends.torch.language.stand_in import create_word_tokenizer  # noqa: E402

CPU = torch.device("cpu")
TEXTS = ["the image shows a red blue green circle square . question : is there which colour ? answer : yes no"]
TEMPLATE = (
    "{% for m in messages %}<s> {{ m.content }} </s>{% endfor %}{% if add_generation_prompt %} answer :{% endif %}"
)
SIZES = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
LLAMA = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **SIZES}
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA, num_key_value_heads=1),
    "gpt2": lambda: transformers.GPT2Config(n_embd=24, n_layer=2, n_head=2, n_positions=64, **SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**{**LLAMA, "vocab_size": 257}, num_key_value_heads=2),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=24, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16, **SIZES
    ),
    # scales its logits, as few models do
    "granite": lambda: transformers.GraniteConfig(**LLAMA, logits_scaling=3.0),
}
PROMPTS = ["question: is there a red circle? answer:", "question: which? answer:", "answer:"]
ANSWERS = ["yes", "red circle", "no"]
WORDS = {"before": "the image shows a ", "after": ".", "most": 6, "dtype": "float32"}


def write_folder(path, config):
    """A folder of a language model with random weights, large enough that words differ in likelihood."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    tokenizer = make_byte_tokenizer() if config.model_type == "qwen2" else create_word_tokenizer(TEXTS, CPU)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


def make_byte_tokenizer():
    """A tokenizer of bytes of the class that transformers takes for all folders of Qwen2; it has no first token."""
    vocabulary = {byte: number for number, byte in enumerate(sorted(ByteLevel.alphabet()))}
    return transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp(request.param), MODELS[request.param]())


@pytest.fixture(scope="module")
def opened(folder):
    return FrozenLanguageModel.open(LanguageConfig(source=str(folder), **WORDS), CPU)[0]


def make_visual(width, rows=3):
    torch.manual_seed(1)
    return torch.randn(rows, 2, width) * 0.3


def tokenize(opened, text):
    return opened.tokenizer(text, add_special_tokens=False)["input_ids"]


def join_by_hand(opened, visual, prompt, answer=""):
    """The embedded tokens of one question, and its labels, without any padding."""
    embed = opened.model.get_input_embeddings()
    first = [] if opened.tokenizer.bos_token is None else [opened.tokenizer.bos_token_id]
    head = first + tokenize(opened, "the image shows a ")
    tail = tokenize(opened, ".") + tokenize(opened, prompt)
    said = [*tokenize(opened, f" {answer}"), opened.tokenizer.eos_token_id] if answer else []
    words = embed(torch.tensor(head)), visual, embed(torch.tensor(tail + said))
    labels = [-100] * (len(head) + len(visual) + len(tail)) + said
    return torch.cat(words)[None], torch.tensor([labels])


def test_the_loss_is_that_of_transformers_and_leaves_the_model_alone(opened):
    assert opened._adds_nothing_to_logits == (opened.model.config.model_type != "granite")
    before = {name: value.clone() for name, value in opened.model.state_dict().items()}
    visual = make_visual(opened.width).requires_grad_()
    total = opened.sum_losses(visual, PROMPTS, ANSWERS)
    total.backward()
    counts = [len(tokenize(opened, f" {answer}")) + 1 for answer in ANSWERS]
    assert opened.count_answer_tokens(ANSWERS) == counts
    expected = 0.0
    for row, prompt, answer in zip(visual, PROMPTS, ANSWERS, strict=True):
        embedded, labels = join_by_hand(opened, row, prompt, answer)
        mean = opened.model(inputs_embeds=embedded, labels=labels).loss
        expected += mean.item() * (labels >= 0).sum().item()
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert (visual.grad.abs().sum(dim=(1, 2)) > 0).all()
    for name, value in opened.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in opened.model.parameters())


def test_recomputed_layers_give_the_same_gradients(folder, opened):
    gradients = []
    for recomputes in (False, True):
        model, _ = FrozenLanguageModel.open(LanguageConfig(source=str(folder), **WORDS), CPU, recomputes)
        visual = make_visual(model.width).requires_grad_()
        model.sum_losses(visual, PROMPTS, ANSWERS).backward()
        gradients.append(visual.grad)
    torch.testing.assert_close(*gradients)
    assert model.answer(make_visual(model.width), PROMPTS) == opened.answer(make_visual(model.width), PROMPTS)


def test_a_batch_answers_as_one_by_one_and_as_the_plainest_loop(opened):
    visual = make_visual(opened.width)
    together = opened.answer(visual, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        assert opened.answer(visual[index : index + 1], [prompt]) == [together[index]]
        embedded, _ = join_by_hand(opened, visual[index], prompt)
        ids = []
        while len(ids) < 6 and opened.tokenizer.eos_token_id not in ids:
            ids.append(int(opened.model(inputs_embeds=embedded).logits[0, -1].argmax()))
            embedded = torch.cat([embedded, opened.model.get_input_embeddings()(torch.tensor([ids[-1:]]))], dim=1)
        # a sentence ends one token behind its full stop
        full_stops = [place for place, token in enumerate(ids) if place and opened.tokenizer.decode([token]) == "."]
        if full_stops:
            ids = ids[: full_stops[0] + 2]
        assert together[index] == opened.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_chat_is_put_around_the_image(folder):
    config = LanguageConfig(source=str(folder), chat=True, **WORDS)
    model, _ = FrozenLanguageModel.open(config, CPU)
    tail = model._prompts.tokenize_tail(["question: which?"], ["red"])
    said = [*model._prompts.tokenize_head(), *tail.ids[0].tolist()]
    whole = "<s> the image shows a .question: which? </s> answer :red"
    assert model.tokenizer.decode(said).replace(" ", "") == f"{whole}</s>".replace(" ", "")
    assert model.tokenizer.decode(tail.ids[0][tail.is_answer[0]]).replace(" ", "") == "red</s>"


def test_an_answer_has_one_blank_before_it_whoever_puts_it_there():
    # the published tokenizer.json of Llama 2 prepends a blank to each text
    words = {
        word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "\u2581yes", "\u2581a", "\u2581", "yes"])
    }
    llama = Tokenizer(models.BPE(words, [], unk_token="<unk>", ignore_merges=True))
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=llama, bos_token="<s>", eos_token="</s>")
    for tokenizer, expected in ((fast, ["\u2581yes", "</s>"]), (make_byte_tokenizer(), ["\u0120", *"yes", "</s>"])):
        ids = PromptTokenizer(tokenizer, LanguageConfig()).tokenize_answer("yes")
        assert tokenizer.convert_ids_to_tokens(ids) == expected


def test_without_transformers_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendError, match=r"need transformers, which is not installed; pip install .*\[language\]'"):
        import_transformers(CPU)


def test_a_long_prompt_is_refused(tmp_path):
    short = transformers.LlamaConfig(**LLAMA, max_position_embeddings=16)
    model, _ = FrozenLanguageModel.open(LanguageConfig(source=str(write_folder(tmp_path, short)), **WORDS), CPU)
    with pytest.raises(ConfigError, match=r"takes 16 tokens at most, and image, prompt and answer are 24"):
        model.answer(make_visual(model.width), PROMPTS)
