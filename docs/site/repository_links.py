"""Lead links from pages to files of the repository outside docs/ to these files, and publish a few of them as pages.

mkdocs calls the functions by their names (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path

import tomllib
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
BRANCH = "main"
PUBLISHED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "docker/README.md": "docker.md",
    "SECURITY.md": "security.md",
}
"""Files outside docs/ that are pages of the site too, by their names there."""
STAND_INS = {"README.md": "README.md", "README.zh-CN.md": "zh/start.md"}
"""Files outside docs/ in whose place the site has a page of docs/."""

_SOURCES = {page: source for source, page in PUBLISHED.items()}
_LINK = re.compile(r"(?P<before>\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\])\((?P<path>[^()\s#:]+)(?P<anchor>#[^()\s]*)?\)")
"""A link in Markdown to a path, and not to a place in the page itself or to another site."""
_log = logging.getLogger("mkdocs.hooks.repository_links")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the addresses of the repository and of the site, if they are known."""
    config.repo_url = find_repository()
    config.site_url = _read_urls().get("Documentation", "")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that are pages too."""
    for source, page in PUBLISHED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    source = _SOURCES.get(page.file.src_uri, f"{DOCS}/{page.file.src_uri}")
    return rewrite_links(markdown, source, page.file.src_uri, config.repo_url)


def find_repository() -> str | None:
    """Return the address of the repository: the one in pyproject.toml, or that of the workflow which runs this."""
    if "Repository" in _read_urls():
        return _read_urls()["Repository"]
    if "GITHUB_REPOSITORY" in os.environ:
        return f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
    return None


def _read_urls() -> dict[str, str]:
    """Return the table ``project.urls`` of pyproject.toml, empty if there is none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls: dict[str, str] = project.get("urls", {})
    return urls


def rewrite_links(markdown: str, source: str, page: str, repository: str | None) -> str:
    """Return the Markdown of the file ``source`` of the repository with the links that the page ``page`` needs.

    A link to another page is relative to ``page``, and one to another file leads to it in the repository. If the
    repository's address is not known, only the text of such a link stays. A file that does not exist is a warning.
    """
    folder = posixpath.dirname(source)

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match["path"]))
        anchor = match["anchor"] or ""
        published = PUBLISHED.get(target) or STAND_INS.get(target)
        if published is None and target.startswith(f"{DOCS}/"):
            published = target.removeprefix(f"{DOCS}/")
        if published is not None:
            return f"{match['before']}({posixpath.relpath(published, posixpath.dirname(page) or '.')}{anchor})"
        path = ROOT / target
        if not path.exists():
            _log.warning("%s: no file of the repository is called %s", source, target)
        if repository is None:
            return match["text"]
        kind = "tree" if path.is_dir() else "blob"
        return f"{match['before']}({repository}/{kind}/{BRANCH}/{target}{anchor})"

    return _LINK.sub(rewrite, markdown)
