"""The Chinese pages agree with the English ones: their headings and figures, and the commands that they show."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/zh").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(path):
    return path.read_text(encoding="utf-8")


def heading_levels(text):
    """Return the level of each heading outside of code blocks."""
    return [len(marks) for marks in re.findall(r"^(#+) ", BLOCK.sub("", text), re.MULTILINE)]


def commands(text):
    """Return the lines of all code blocks without comments and continuations, which are joined."""
    lines = []
    for _, block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = " ".join(re.sub(r"(^|\s)#\s.*", "", line).split())
            if line:
                lines.append(line)
    return lines


def figures(text):
    """Return the numbers in the second cell of each row of the tables, thousands without commas."""
    cells = re.findall(r"^\|[^|]*\|([^|]*)\|", text, re.MULTILINE)
    return [re.findall(r"\d[\d.]*(?:e-\d+)?", cell.replace(",", "")) for cell in cells]


def english_pages(path):
    """Return the pages that the second paragraph of a Chinese page names as those that it follows."""
    line = read(path).splitlines()[2]
    return [(path.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", line.partition("English")[2])]


def test_both_readmes_have_the_same_headings_commands_and_figures():
    english = read(ROOT / "README.md")
    chinese = read(ROOT / "README.zh-CN.md")
    assert heading_levels(chinese) == heading_levels(english)
    assert commands(chinese) == commands(english)
    measured = [re.split("^## ", text, flags=re.MULTILINE)[3] for text in (english, chinese)]
    assert "fastcluster" in measured[0]
    assert figures(measured[1]) == figures(measured[0])


def test_the_chinese_readme_leads_wherever_the_english_one_does():
    """A sentence that only one of them got, such as on a new guide, is found by its link."""
    english, chinese = (
        set(re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", read(ROOT / name)))) for name in ("README.md", "README.zh-CN.md")
    )
    assert english - chinese == {"README.zh-CN.md"}


def test_the_readmes_name_each_other_at_the_top():
    assert "](README.zh-CN.md)" in read(ROOT / "README.md").split("```")[0]
    assert "](README.md)" in read(ROOT / "README.zh-CN.md").split("```")[0]


def test_there_are_the_pages_that_the_readme_names():
    assert [path.stem for path in PAGES] == ["ascend", "serving", "start"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_commands_of_a_page_are_those_of_the_english_pages_that_it_names(path):
    followed = english_pages(path)
    assert followed
    known = {line for page in followed for line in commands(read(page))}
    assert commands(read(path))
    assert [line for line in commands(read(path)) if line not in known] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_first_english_page_that_a_page_names_leads_back_at_its_top(path):
    followed = english_pages(path)[0]
    (link,) = re.findall(r"^English \| \[简体中文\]\((.*)\)$", "\n".join(read(followed).splitlines()[:5]), re.MULTILINE)
    assert (followed.parent / link).resolve() == path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_versions_in_its_tables_are_those_of_the_english_pages(path):
    rows = [row for row in re.findall(r"^\|.*\|$", read(path), re.MULTILINE) if re.match(r"\| \d+\.\d+\.\d+", row)]
    known = {tuple(cell_versions(row)) for page in english_pages(path) for row in read(page).splitlines()}
    assert [row for row in rows if tuple(cell_versions(row)) not in known] == []


def cell_versions(row):
    """Return the words with a dot in a row of a table: versions of packages."""
    return re.findall(r"\d+\.[\w.]+", row)


def test_comments_headings_and_thousands_are_understood():
    text = "# A\n```sh\nls -l \\\n    /  # 列出\n# 注释\ncurl host#x\n```\n## B\n| 项目 | 2,515 与 5e-8 | 3 |\n"
    assert heading_levels(text) == [1, 2]
    assert commands(text) == ["ls -l /", "curl host#x"]
    assert figures(text) == [["2515", "5e-8"]]
