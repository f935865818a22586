"""The site that ``make docs`` builds: no link is broken, the reference is complete, nothing is from elsewhere."""

import json
import re
from collections import Counter
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("material", reason="mkdocs-material is not installed (extra docs)")

import html5lib
from markdown_it import MarkdownIt
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from repository_links import PUBLISHED, find_repository, rewrite_links

import ehm
import ehm.masking
from ehm.cli import build_parser
from ehm.commands import COMMANDS
from ehm.config.listing import configs
from ehm.deploy.serve.http.app import create_app

ROOT = Path(__file__).parents[2]
SPACE = re.compile(r"\s+")
# Material's code uses what its packages have since deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def build_site(folder, **settings):
    """Build the site strictly into ``folder``, with ``settings`` instead of those of mkdocs.yml."""
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True, **settings)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site; it is built only if no link and no anchor is broken."""
    return build_site(tmp_path_factory.mktemp("site"))


def read_page(path):
    """Return the tree of a page."""
    with path.open("rb") as stream:
        return html5lib.parse(stream, namespaceHTMLElements=False)


def read_text(element):
    return SPACE.sub(" ", "".join(element.itertext())).strip()


def list_headings(page):
    """Return the texts of a page's headings, without the sign that links to each."""
    return [read_text(heading).removesuffix("¶").strip() for level in "123" for heading in page.iter(f"h{level}")]


def list_rows(page):
    """Return the cells of all rows of a page's tables."""
    return [[read_text(cell) for cell in row.iter("td")] for row in page.iter("tr")]


def test_broken_links_are_errors(tmp_path, caplog):
    pages = tmp_path / "docs"
    pages.mkdir()
    text = "# Home\n\n[a](no_such_page.md), [b](README.md#no-such-heading), [c](../no_such_file.py)\n"
    (pages / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(Abort):
        build_site(tmp_path / "site", docs_dir=str(pages), nav=None, hooks=["docs/site/repository_links.py"])
    for name in ("no_such_page.md", "no-such-heading", "no_such_file.py"):
        assert name in caplog.text


def test_nothing_comes_from_other_sites(site):
    loading = re.compile(r"""<(?:link|script|img|iframe|video)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
    for path in site.rglob("*.html"):
        assert loading.findall(path.read_text(encoding="utf-8")) == [], path
    assert loading.search('<script async src="https://example.org/a.js">')


def count_elements(html):
    return Counter(re.findall(r"<(li|ol|ul|tr|pre|blockquote|img|strong|em|h2|h3)\b", html))


def list_cells(html):
    """Return the texts of the cells of tables, without the marks of highlighted code."""
    cells = re.findall(r"<td\b[^>]*>(.*?)</td>", html, re.S)
    return [SPACE.sub(" ", unescape(re.sub(r"<[^>]*>", "", cell))).strip() for cell in cells]


def test_pages_read_as_on_the_forge(site):
    """Python-Markdown, which builds the site, nests lists and escapes code by other rules than CommonMark."""
    forge = MarkdownIt("commonmark").enable("table")
    pages = {path.relative_to(ROOT / "docs").as_posix(): path for path in (ROOT / "docs").rglob("*.md")}
    pages |= {page: ROOT / source for source, page in PUBLISHED.items()}
    for page, source in pages.items():
        name = re.sub(r"README\.md$", "index.md", page).removesuffix(".md")
        html = (site / f"{name}.html").read_text(encoding="utf-8")
        article = html.partition("<article")[2].partition("</article>")[0]
        expected = forge.render(source.read_text(encoding="utf-8"))
        assert count_elements(article) == count_elements(expected), source
        assert list_cells(article) == list_cells(expected), source


def test_the_page_of_a_command_has_what_its_help_prints(site, capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            build_parser([command]).parse_args([command, "--help"])
        flags = re.findall(r"^  (?:-\w(?: [A-Z]+)?, )?(--[a-z0-9-]+)", capsys.readouterr().out, re.M)
        assert "--debug" in flags
        page = read_page(site / f"reference/commands/{command}.html")
        named = {read_text(code).partition(" ")[0] for cell in page.iter("td") for code in cell.iter("code")}
        assert set(flags) <= named


def test_the_pages_of_keys_have_what_ehm_configs_prints(site, capsys):
    configs(keys="", json=True)
    rows = {}
    for path in (site / "reference/configuration").glob("*.html"):
        page = read_page(path)
        for name, *described in (row for row in list_rows(page) if len(row) == 4):
            rows[list_headings(page)[0].removeprefix("Keys of "), name] = described
    keys = json.loads(capsys.readouterr().out)
    for key in keys:
        type_, default, meaning = rows[key["command"], key["name"]]
        assert type_ == key["type"]
        assert (default == "") == (key["default"] in (None, ""))
        assert meaning == re.sub(r"docs/(\w+)\.md", lambda match: match[1].replace("_", " "), key["meaning"])
    assert len(rows) == len(keys)


def test_the_page_of_python_has_every_public_name(site):
    headings = list_headings(read_page(site / "reference/python.html"))
    assert {f"ehm.{name}" for name in ehm.__all__} - {"ehm.__version__"} <= set(headings)
    assert {"TrainResult", "Prediction", "ConfigError"} <= set(headings)
    assert set(ehm.masking.__all__) <= set(list_headings(read_page(site / "reference/masking.html")))
    text = read_text(read_page(site / "reference/python.html"))
    assert "train( config: TrainConfig | str | Path | None = None" in text
    assert ":class:" not in text


def test_the_page_of_http_has_every_route_and_schema(site):
    document = create_app(SimpleNamespace(guarded=True)).openapi()
    headings = list_headings(read_page(site / "reference/http.html"))
    for path, operations in document["paths"].items():
        assert {f"{method.upper()} {path}" for method in operations} <= set(headings)
    assert set(document["components"]["schemas"]) <= set(headings)
    assert json.loads((site / "reference/openapi.json").read_text()) == document


@pytest.mark.parametrize(
    ("source", "page", "link", "expected"),
    [
        ("docs/data.md", "data.md", "[a](../backends/base.py)", "[a](URL/blob/main/backends/base.py)"),
        ("docs/data.md", "data.md", "[a](../configs/studies)", "[a](URL/tree/main/configs/studies)"),
        ("docs/data.md", "data.md", "[a](../LICENSE#x)", "[a](URL/blob/main/LICENSE#x)"),
        ("docs/verified/a.md", "verified/a.md", "[a](../data.md#b)", "[a](../data.md#b)"),
        ("docs/verified/a.md", "verified/a.md", "[a](../../CHANGELOG.md)", "[a](../changelog.md)"),
        ("docs/data.md", "data.md", "[a](images/x.png), ![b](images/x.png)", None),
        ("docs/data.md", "data.md", "[a](https://example.org/a.md), [b](#c)", None),
        ("docs/zh/start.md", "zh/start.md", "[a](../../README.md)", "[a](../README.md)"),
        ("docker/README.md", "docker.md", "[a](../docs/serving.md#limits)", "[a](serving.md#limits)"),
    ],
)
def test_links_lead_to_pages_and_to_files_of_the_repository(source, page, link, expected):
    assert rewrite_links(link, source, page, "URL") == (expected or link)


def test_without_an_address_of_the_repository_the_text_stays():
    text = "see [`base.py`](../backends/base.py) and [data](data.md)"
    assert rewrite_links(text, "docs/a.md", "a.md", None) == "see `base.py` and [data](data.md)"


def test_the_address_is_that_of_the_workflow_unless_the_project_names_one(monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/ehm")
    monkeypatch.setattr("repository_links.ROOT", tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "ehm"\n')
    assert find_repository() == "https://example.org/someone/ehm"
    project.write_text('[project]\nname = "ehm"\n[project.urls]\nRepository = "https://example.org/other"\n')
    assert find_repository() == "https://example.org/other"


def test_the_home_page_names_every_guide():
    text = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\((\w+\.md)\)", text))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
