"""Each room of the house imports only from the rooms below it, and no framework is imported outside its backend.

Read from the source with ``ast``, so that imports inside functions count too; those for type checkers alone do not.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOMES = {"ehm": "ehm", "backends": "ehm.backends", "deploy": "ehm.deploy"}
TORCH = {"torch", "torchvision", "timm", "torch_npu"}
LANGUAGE = {"transformers", "tokenizers"}
FRAMEWORKS = TORCH | LANGUAGE | {"mindspore", "jax", "tensorflow", "onnx", "onnxscript", "onnxruntime"}
WEB = {"fastapi", "starlette", "uvicorn"}

BASICS = {
    "ehm.errors",
    "ehm.installation",
    "ehm.suggestions",
    "ehm.plain_values",
    "ehm.storage",
    "ehm.console",
    "ehm.progress_bar",
    "ehm.processors",
    "ehm.plugins",
    "ehm.probabilities",
}
CORE = BASICS | {"ehm.config"}
LEARNING = CORE | {"ehm.masking", "ehm.data", "ehm.models"}
ROOMS: dict[str, set[str]] = {
    "ehm.errors": set(),
    "ehm.installation": set(),
    "ehm.suggestions": set(),
    "ehm.plain_values": set(),
    "ehm.processors": {"ehm.errors"},
    "ehm.probabilities": set(),
    "ehm.plugins": {"ehm.errors"},
    "ehm.storage": {"ehm.errors"},
    "ehm.console": {"ehm.errors", "ehm.storage"},
    "ehm.progress_bar": {"ehm.console"},
    "ehm.config": BASICS,
    "ehm.masking": {"ehm.errors", "ehm.processors"},
    "ehm.data": CORE,
    "ehm.models": CORE,
    "ehm.backends": BASICS,  # the protocol and what every backend shares
    "ehm.backends.torch": LEARNING | {"ehm.backends"},
    "ehm.backends.mindspore": LEARNING | {"ehm.backends"},
    "ehm.analysis": LEARNING | {"ehm.backends", "ehm.report"},
    "ehm.report": CORE | {"ehm.data"},
    "ehm.training": LEARNING | {"ehm.backends", "ehm.analysis", "ehm.report"},
    "ehm.tasks": LEARNING | {"ehm.backends", "ehm.analysis", "ehm.report", "ehm.training"},
    "ehm.comparison": LEARNING | {"ehm.backends", "ehm.analysis", "ehm.report", "ehm.training", "ehm.tasks"},
    "ehm.reference": CORE | {"ehm.models"},
    "ehm.doctor": CORE | {"ehm.backends", "ehm.reference"},
    "ehm.pytest_plugin": {"ehm.backends.torch"},
    "ehm.deploy.bundle": CORE | {"ehm.data"},
    "ehm.deploy.predict": CORE | {"ehm.data", "ehm.report", "ehm.deploy.bundle"},
    "ehm.deploy.serve": CORE | {"ehm.data", "ehm.masking", "ehm.analysis", "ehm.deploy.bundle", "ehm.deploy.predict"},
    "ehm.deploy.export": LEARNING
    | {"ehm.report", "ehm.training", "ehm.tasks", "ehm.backends.torch", "ehm.deploy.bundle", "ehm.deploy.predict"},
    "ehm.deploy.launch": CORE,
    "ehm.verification": LEARNING
    | {"ehm.backends", "ehm.reference", "ehm.report", "ehm.training", "ehm.doctor"}
    | {"ehm.deploy.bundle", "ehm.deploy.predict", "ehm.deploy.export"},
    "ehm.commands": CORE | {"ehm.deploy.serve"},
    "ehm.commands.completion": CORE
    | {"ehm.commands", "ehm.backends", "ehm.tasks", "ehm.deploy.bundle", "ehm.deploy.launch", "ehm.deploy.predict"},
    "ehm.deploy": LEARNING
    | {"ehm.report", "ehm.training", "ehm.backends.torch", "ehm.deploy.bundle", "ehm.deploy.predict"},
}
"""The rooms from which each room may import. A module belongs to the room with the longest name that begins its own."""

WIRING = {"ehm", "ehm.cli"}
"""Modules that only wire: the command line may import any room, and any room may import ``ehm`` for its version."""

OUTSIDE: list[tuple[str, set[str]]] = [
    ("ehm.backends.torch.language", TORCH | LANGUAGE),
    ("ehm.backends.torch", TORCH),
    ("ehm.backends.mindspore", {"mindspore"}),
    *((f"ehm.deploy.export.engines.{name}", set()) for name in ("ascend", "convert", "kserve", "triton")),
    ("ehm.deploy.bench_baselines", {"torch", "onnxruntime"}),
    ("ehm.deploy.export", {"torch", "torchvision", "onnx", "onnxscript", "onnxruntime"}),
    *(
        (f"ehm.deploy.serve.inference.{name}", {"onnxruntime"})
        for name in ("batching", "images", "models", "served_model")
    ),
    ("ehm.deploy.serve.routes.protocol", set()),
    ("ehm.deploy.serve", WEB | {"onnxruntime"}),
    ("ehm.deploy", {"onnxruntime"}),
    ("ehm", set()),
]
"""Frameworks and web libraries that a module may import; the first name that begins the module's is its rule."""


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


def room_of(name):
    """The room that a module belongs to, or its own name if it belongs to none."""
    return next((room for room in sorted(ROOMS, key=len, reverse=True) if under(name, room)), name)


def violations(name, source, is_package=False):
    """Find the imports of a module from a room above its own, a framework not its own, or a top-level folder."""
    allowed_outside = next(allowed for prefix, allowed in OUTSIDE if under(name, prefix))
    forbidden = (FRAMEWORKS | WEB | {"backends", "deploy"}) - allowed_outside
    found = set()
    for target in imports(name, source, is_package):
        room = room_of(target)
        from_above = room in ROOMS and name not in WIRING and room not in {room_of(name), *ROOMS[room_of(name)]}
        if from_above or any(under(target, bad) for bad in forbidden):
            found.add(target)
    return found


def test_every_module_has_a_room():
    assert {name for name, _ in modules() if room_of(name) not in ROOMS} == WIRING


def test_no_two_rooms_need_each_other():
    order = TopologicalSorter(ROOMS)
    assert set(order.static_order()) == set(ROOMS)  # raises CycleError if there is a cycle


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
        ("ehm.backends.torch.learners.vision_language", "from transformers import AutoTokenizer"),
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
    """Return ``sys.modules`` of a new interpreter after importing modules."""
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
