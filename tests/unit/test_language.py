"""Docstrings begin with a sentence that stands alone (CONTRIBUTING.md, "How the code reads")."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLAUSES = {"And", "As", "How", "Of", "That", "Those", "What", "Where", "Whether", "Which", "Who", "Whose"}
"""First words of a clause that needs the name above it to be understood."""
FOLDERS = ("ehm", "backends", "deploy", "benchmarks", "docs", "tests")


def python_files():
    """Yield every Python file once; links to folders are not followed."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.resolve() == path:
                yield path


def clauses(source):
    """Yield the line and the docstring of whatever has one that begins with a clause: constants and fields too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from clause(getattr(node, "lineno", 1), ast.get_docstring(node) or "")
        if isinstance(node, ast.Module | ast.ClassDef):
            for assignment, following in pairwise(node.body):
                match assignment, following:
                    case ast.Assign() | ast.AnnAssign(), ast.Expr(ast.Constant(str(text))):
                        yield from clause(following.lineno, text)


def clause(line, docstring):
    """Yield the line and the first line of a docstring that begins with a clause."""
    if docstring.split() and docstring.split()[0].strip("`'\".,:") in CLAUSES:
        yield line, docstring.splitlines()[0]


@pytest.mark.parametrize("path", list(python_files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_sentence(path):
    assert list(clauses(path.read_text(encoding="utf-8"))) == []


def test_a_clause_is_seen():
    source = '"""Of a module."""\nclass A:\n    """An a."""\n    def f(self):\n        """What it does."""'
    assert list(clauses(source)) == [(1, "Of a module."), (4, "What it does.")]
    assert list(clauses('A = 1\n"""A number."""\nB: int = 2\n"""Whether it is."""')) == [(4, "Whether it is.")]
