"""The import direction: deploy -> ehm.tasks -> ehm -> ehm.backends.base, and no framework outside a backend.

Read from the source with ``ast``, so that imports inside functions count too; those for type checkers alone do not.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOMES = {"ehm": "ehm", "backends": "ehm.backends", "deploy": "ehm.deploy"}
TORCH = {"torch", "torchvision", "timm", "torch_npu"}
FRAMEWORKS = TORCH | {"mindspore", "jax", "tensorflow", "onnx", "onnxscript", "onnxruntime"}
LOOPS = {"ehm.training.pretrain", "ehm.tasks", "ehm.analysis", "ehm.deploy", "ehm.cli", "ehm.doctor"}

DEPLOYING = {"ehm.cli", "ehm.training.pretrain", "ehm.backends"} | (FRAMEWORKS - {"onnxruntime"})
WEB = {"fastapi", "starlette", "uvicorn"}

RULES: list[tuple[str, set[str]]] = [
    ("ehm.cli", FRAMEWORKS),  # wires everything
    ("ehm.backends.torch", LOOPS | (FRAMEWORKS - TORCH) | {"ehm.backends.mindspore"}),
    ("ehm.backends.mindspore", LOOPS | (FRAMEWORKS - {"mindspore"}) | {"ehm.backends.torch"}),
    ("ehm.backends", LOOPS | FRAMEWORKS | {"ehm.masking", "ehm.data", "ehm.config"}),
    *(
        (f"ehm.deploy.export.{name}", {"ehm.cli", "ehm.backends"} | FRAMEWORKS)
        for name in ("ascend", "engines", "kserve", "triton")
    ),
    ("ehm.deploy.export", {"ehm.cli", "mindspore", "torch_npu", "timm"}),
    *((f"ehm.deploy.serve.{name}", DEPLOYING | WEB) for name in ("batching", "images", "models", "protocol")),
    ("ehm.deploy.serve", DEPLOYING | {"ehm.deploy.export"}),
    ("ehm.deploy", DEPLOYING | WEB),
    ("ehm.masking", LOOPS | FRAMEWORKS | {"ehm.backends", "ehm.data"}),
    ("ehm.data", LOOPS | FRAMEWORKS | {"ehm.backends", "ehm.masking"}),
    ("ehm.tasks", {"ehm.deploy", "ehm.cli", "ehm.backends.torch", "ehm.backends.mindspore"} | FRAMEWORKS),
    ("ehm", {"ehm.tasks", "ehm.deploy", "ehm.cli", "ehm.backends.torch", "ehm.backends.mindspore"} | FRAMEWORKS),
]
"""What a module may not import; the first rule whose name begins the module's name is its rule."""


def modules():
    """Every module of the package by its import name, read from the real folders."""
    for folder, package in HOMES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if not (folder == "ehm" and parts[0] in ("backends", "deploy", "configs")):
                yield ".".join([package, *parts]).removesuffix(".__init__"), path


def imports(name, source, is_package=False):
    """Names that a module imports at run time: ``from a import b`` counts as ``a`` and as ``a.b``."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".") if is_package else name.split(".")[:-1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def under(name, package):
    return name == package or name.startswith(package + ".")


def violations(name, source, is_package=False):
    """What a module imports against its rule, or through a top-level folder."""
    forbidden = next(rule for prefix, rule in RULES if under(name, prefix)) | {"backends", "deploy"}
    found = {target for target in imports(name, source, is_package) if any(under(target, bad) for bad in forbidden)}
    return found - {"ehm.backends.base"}


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_one_way(name, path):
    assert violations(name, path.read_text(encoding="utf-8"), path.name == "__init__.py") == set()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ehm.training.pretrain", "import torch"),
        ("ehm.training.pretrain", "def f():\n    from torch import nn"),
        ("ehm.training.pretrain", "from ehm.backends.torch.learners.pretraining import TorchLearner"),
        ("ehm.training.pretrain", "from ehm.backends import torch"),
        ("ehm.training.pretrain", "import backends.torch"),
        ("ehm.masking.masks", "from ehm import tasks"),
        ("ehm.masking.masks", "from ..backends import get"),
        ("ehm.data.loader", "import torch.utils.data"),
        ("ehm.tasks.finetune", "from ehm.deploy.export import export"),
        ("ehm.backends.torch.learners.pretraining", "import mindspore"),
        ("ehm.backends.torch.learners.pretraining", "from ehm.training.pretrain import train"),
        ("ehm.backends.mindspore.learners.pretraining", "from ehm.backends.torch import optim"),
        ("ehm.backends.base", "import torch"),
        ("ehm.backends.base", "from ehm.config import TrainConfig"),
        ("ehm.deploy.predict.predictor", "import torch"),
        ("ehm.deploy.export.engines.triton", "import onnx"),
        ("ehm.deploy.serve.http.app", "from ehm.backends import get"),
        ("ehm.deploy.serve.routes.protocol", "from fastapi import Request"),
        ("ehm.deploy.predict.predictor", "import uvicorn"),
    ],
)
def test_a_wrong_import_is_seen(name, source):
    assert violations(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ehm.training.pretrain", "from ehm import backends\nfrom ehm.backends.base import Learner\nimport numpy"),
        ("ehm.backends.base", "if TYPE_CHECKING:\n    from ehm.config import TrainConfig"),
        (
            "ehm.backends.torch.learners.pretraining",
            "import torch\nimport timm\nfrom ehm.masking import build_hierarchy",
        ),
        ("ehm.deploy.predict.predictor", "import onnxruntime"),
    ],
)
def test_a_right_import_is_let_through(name, source):
    assert not violations(name, source)


def loaded(*names):
    """What is in ``sys.modules`` of a new interpreter after importing modules."""
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_import_ehm_loads_nothing_heavy():
    assert not loaded("ehm") & (FRAMEWORKS | {"numpy", "numba", "scipy", "pydantic", "PIL", "grain", "rich", "yaml"})


def test_the_command_line_starts_without_anything_heavy():
    assert not loaded("ehm.cli") & (FRAMEWORKS | {"numpy", "numba", "scipy", "pydantic", "PIL", "grain", "yaml"})


def test_no_module_outside_a_backend_loads_a_framework():
    free = [
        name
        for name, _ in modules()
        if not name.startswith(("ehm.backends.", "ehm.deploy.export")) and not name.endswith("__main__")
    ]
    assert {"ehm.training.pretrain", "ehm.masking", "ehm.data", "ehm.config"} <= set(free)
    assert not loaded(*free) & (FRAMEWORKS - {"onnxruntime"})  # which is what ehm.deploy serves with
