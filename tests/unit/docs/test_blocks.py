"""Every code block of the documents is checked, or says why nothing here can check it."""

import pytest
from documented import FaultyBlockError
from documented.blocks import PAGES, ROOT, Block, read_blocks, read_inline_code
from documented.documents import check_json, check_text, check_toml, check_yaml
from documented.ehm_commands import check_keys
from documented.programs import check_paths, check_shell
from documented.python_code import check_python
from documented.shell import split_commands

CHECKS = {
    "sh": check_shell,
    "python": check_python,
    "yaml": check_yaml,
    "json": check_json,
    "toml": check_toml,
    "text": check_text,
}
UNFINISHED = ("are required", "expected one argument", "expected at least one argument", "is not a YAML value")
"""The parser's answers if a sentence names a part of a command alone."""


def find_fault(block):
    """Return what is wrong with a block, or None."""
    if block.language not in CHECKS:
        return f"{block}: name the language of the block, one of {', '.join(CHECKS)}, not {block.language!r}"
    try:
        is_known = CHECKS[block.language](block.text)
    except FaultyBlockError as error:
        return f"{block}: {error}"
    if not is_known and block.mark is None:
        return f"{block}: nothing checks this block; say why before it: <!-- example: needs an NPU -->"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_works_or_says_why_it_is_not_checked(page):
    faults = [fault for fault in map(find_fault, read_blocks(page)) if fault]
    assert not faults, "\n".join(faults)


def find_inline_fault(code):
    """Return what is wrong with a command or a file that a sentence names, or None."""
    words = code.split()
    try:
        if set(words[::2]) == {"--set"} and all("=" in word for word in words[1::2]):
            check_keys(words[1::2])
        if words[0] in ("ehm", "make") and words[1:] not in ([], ["COMMAND", "--help"]):
            check_shell(code)
        check_paths(words)
    except FaultyBlockError as error:
        is_unfinished = any(answer in str(error) for answer in UNFINISHED)
        return None if is_unfinished else f"`{code}`: {error}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_files_within_sentences_exist(page):
    faults = [fault for fault in map(find_inline_fault, read_inline_code(page)) if fault]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("sh", "ehm trian --out runs/a", "trian: unknown command"),
        ("sh", "ehm train --outt runs/a", "--outt: unknown flag"),
        ("sh", "ehm train --set optim.epoch=3", "optim.epoch: unknown key"),
        ("sh", "ehm train optim.epoch=3", "optim.epoch=3: no such key"),
        ("sh", "ehm train --set optim.epochs=many", "optim.epochs: should be a whole number"),
        ("sh", "ehm train --config elpv/pretain", "neither a shipped configuration nor"),
        ("sh", "ehm compare --train studies/elpv --arms evolvd", "--arms evolvd: the arms are"),
        ("sh", "cd runs && torchrun -m ehm.cli train --set a=1", "a: unknown key"),
        ("sh", "docker run --rm ehm:serve-cpu /models --prt 1", "--prt: unknown flag"),
        ("sh", "docker compose -f docker/compose.yaml run --rm cppu doctor", "no such service"),
        ("sh", "make quikstart", "no such target"),
        ("sh", "make quickstart DEVISE=npu", "no such variable"),
        ("sh", "pip install '.[torhc]'", "no such extra"),
        ("sh", "python benchmarks/lodaer.py", "no such file"),
        ("sh", "python benchmarks/loader.py --imges 3", "no such flag"),
        ("sh", "curl --data-binary @a.png localhost:8000/v1/clasify", "POST /v1/clasify: ehm serve has no such route"),
        ("sh", "curl localhost:8000/v1/classify", "GET /v1/classify"),
        ("sh", "emh train", "no check knows this program"),
        ("python", "import ehm\nehm.trian()", "ehm has no such function"),
        ("python", "import ehm\nehm.train(epochs=3)", "unexpected keyword argument 'epochs'"),
        ("python", "import ehm\nehm.train(overrides=['optim.epoch=3'])", "optim.epoch: unknown key"),
        ("python", "from ehm.masking import build_tree", "import ehm.masking.build_tree"),
        ("python", "def f(:", "is not Python"),
        ("yaml", "data: {sorce: /data}", "is no configuration of any command"),
        ("yaml", "arms: {a: [mask.ratios=0.5]}", "mask.ratios: unknown key"),
        ("yaml", "port: 99999999", "less than"),
        ("yaml", "{apiVersion: v1, spec: {template: {spec: {contaners: []}}}}", "is no pod of Kubernetes"),
        (
            "yaml",
            "{apiVersion: v1, spec: {template: {spec: {containers: [{name: a, image: ehm:cpu, args: [trian]}]}}}}",
            "trian: unknown command",
        ),
        ("json", '{"a": 1', "is not JSON"),
        ("toml", "a = ", "is not TOML"),
        ("text", "$ ehm train", "use a block of sh"),
        ("sh", "kubectl get pods", "nothing checks this block"),
        ("", "ehm train", "name the language"),
    ],
)
def test_a_faulty_block_is_found(language, text, reason):
    assert reason in find_fault(Block(PAGES[0], 1, language, text, None))


def test_a_mark_stands_for_a_check_that_there_is_not(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- example: needs a cluster -->\n\n```sh\nkubectl get pods\n```\n\n    kubectl get pods\n")
    fenced, indented = read_blocks(page)
    assert (fenced.mark, fenced.line, indented.mark, indented.language) == ("needs a cluster", 3, None, "")
    assert CHECKS["sh"](fenced.text) is False


def test_commands_are_taken_apart_as_a_shell_does():
    text = "# one's\nA=1 ehm train \\\n  --out 'a b'  # it's\nfor i in 1 2; do\n  ehm doctor | head && cd x > log\ndone"
    assert split_commands(text) == [["ehm", "train", "--out", "a b"], ["ehm", "doctor"], ["head"], ["cd", "x"]]
