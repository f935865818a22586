"""Docstrings begin with a sentence that stands alone (CONTRIBUTING.md, "How the code reads")."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLAUSES = {"And", "As", "How", "Of", "That", "Those", "What", "Where", "Whether", "Which", "Who", "Whose"}
"""First words of a clause that needs the name above it to be understood."""
FOLDERS = ("ehm", "backends", "deploy", "benchmarks", "tests")


def python_files():
    """Yield every Python file once; links to folders are not followed."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.resolve() == path:
                yield path


def clauses(source):
    """Yield the line and the docstring of every module, class and function whose docstring begins with a clause."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            if docstring.split() and docstring.split()[0].strip("`'\".,:") in CLAUSES:
                yield getattr(node, "lineno", 1), docstring.splitlines()[0]


@pytest.mark.parametrize("path", list(python_files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_sentence(path):
    assert list(clauses(path.read_text(encoding="utf-8"))) == []


def test_a_clause_is_seen():
    source = '"""Of a module."""\nclass A:\n    """An a."""\n    def f(self):\n        """What it does."""'
    assert list(clauses(source)) == [(1, "Of a module."), (4, "What it does.")]
