"""The site that ``make docs`` builds: no link is broken, and links to files of the repository lead there."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("material", reason="mkdocs-material is not installed (extra docs)")

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[2]
# Material's code uses what its packages have since deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def links():
    """The hook that rewrites links."""
    spec = importlib.util.spec_from_file_location("repository_links", ROOT / "docs/site/repository_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_site(folder, **settings):
    """Build the site strictly into ``folder``, with ``settings`` instead of those of mkdocs.yml."""
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True, **settings)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


def test_no_link_and_no_anchor_is_broken(tmp_path):
    site = build_site(tmp_path)
    assert "Evolved Hierarchical Masking" in (site / "index.html").read_text(encoding="utf-8")


def test_broken_ones_are_errors(tmp_path, caplog):
    pages = tmp_path / "docs"
    pages.mkdir()
    text = "# Home\n\n[a](no_such_page.md), [b](README.md#no-such-heading), [c](../no_such_file.py)\n"
    (pages / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(Abort):
        build_site(tmp_path / "site", docs_dir=str(pages), nav=None)
    for name in ("no_such_page.md", "no-such-heading", "no_such_file.py"):
        assert name in caplog.text


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
        ("docker/README.md", "docker.md", "[a](../docs/serving.md#limits)", "[a](serving.md#limits)"),
    ],
)
def test_links_lead_to_pages_and_to_files_of_the_repository(links, source, page, link, expected):
    assert links.rewrite_links(link, source, page, "URL") == (expected or link)


def test_without_an_address_of_the_repository_the_text_stays(links):
    text = "see [`base.py`](../backends/base.py) and [data](data.md)"
    assert links.rewrite_links(text, "docs/a.md", "a.md", None) == "see `base.py` and [data](data.md)"


def test_the_address_is_that_of_the_workflow_unless_the_project_names_one(links, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/ehm")
    monkeypatch.setattr(links, "ROOT", tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "ehm"\n')
    assert links.find_repository() == "https://example.org/someone/ehm"
    project.write_text('[project]\nname = "ehm"\n[project.urls]\nRepository = "https://example.org/other"\n')
    assert links.find_repository() == "https://example.org/other"
