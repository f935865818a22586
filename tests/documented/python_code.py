"""Programs in Python: they compile, what they take from ehm exists, and those that need little are run."""

import ast
import inspect

from documented import FaultyBlockError
from documented.blocks import ROOT
from documented.ehm_commands import check_ehm

_CHEAP = {"numpy", "ehm.masking", "json", "math"}
"""A program that imports nothing else is run."""
_COMMANDS = {"train": "train", "finetune": "finetune", "probe": "probe", "evaluate": "evaluate"}


def check_python(code):
    """Check a program, and run it if it imports little."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        raise FaultyBlockError(f"is not Python: {error}") from None
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
            for alias in node.names:
                if _is_own(alias.name):
                    _check_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
            if _is_own(node.module):
                _check_import(node)
        elif isinstance(node, ast.Call):
            _check_call(node)
    if imported and imported <= _CHEAP:
        exec(compile(tree, "block", "exec"), {})
    return True


def _is_own(module):
    return module.split(".")[0] == "ehm"


def _check_module(name):
    """Return the source file of a module of ehm. It is read, not imported: some need a framework."""
    path = ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    raise FaultyBlockError(f"import {name}: there is no such module")


def _check_import(node):
    file = _check_module(node.module)
    defined = {word for line in ast.parse(file.read_text(encoding="utf-8")).body for word in _find_names(line)}
    for alias in node.names:
        if alias.name not in defined:
            _check_module(f"{node.module}.{alias.name}")


def _find_names(node):
    """Yield the names that a statement at the top of a module defines, and those in ``__all__``."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for name in ast.walk(node):
            if isinstance(name, ast.Name):
                yield name.id
            elif isinstance(name, ast.Constant):
                yield name.value


def _check_call(node):
    """Check a call ``ehm.NAME(...)``: the function, its parameters, and its overrides."""
    function = node.func
    is_own = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "ehm"
    if not is_own:
        return
    import ehm

    if function.attr not in ehm.__all__:
        raise FaultyBlockError(f"ehm.{function.attr}: ehm has no such function")
    keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    try:
        inspect.signature(getattr(ehm, function.attr)).bind(*node.args, **keywords)
    except TypeError as error:
        raise FaultyBlockError(f"ehm.{function.attr}: {error}") from None
    if function.attr in _COMMANDS and "overrides" in keywords:
        words = [_COMMANDS[function.attr], *(_literal(each) for each in node.args)]
        if function.attr in ("train", "finetune", "probe") and node.args:
            words.insert(1, "--config")
        for override in ast.literal_eval(keywords["overrides"]):
            words += ["--set", override]
        check_ehm(words)


def _literal(node):
    return str(ast.literal_eval(node)) if isinstance(node, ast.Constant) else "file.yaml"
