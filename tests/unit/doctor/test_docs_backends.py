"""docs/backends.md says what the code says: versions, variables, facts of devices, and an example that works."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from ehm.backends import ascend_releases
from ehm.doctor.attention import TOLERANCE
from ehm.doctor.variables import VARIABLES
from ehm.installation import build_install_command

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/backends.md").read_text(encoding="utf-8")


def table(*header):
    """The rows of the table with this header, as lists of cells."""
    lines = TEXT.partition(f"| {' | '.join(header)} |\n")[2].splitlines()[1:]
    assert lines, header
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_versions_are_those_that_the_code_goes_by():
    rows = table("torch-npu", "torch", "CANN")
    assert rows == [[pair.torch_npu, pair.torch, pair.cann] for pair in ascend_releases.PAIRS]
    newest = ascend_releases.NEWEST
    versions = f"torch=={newest.torch} torch-npu=={newest.torch_npu}"
    assert f"CANN {newest.cann}, then `pip install '.[npu]' {versions}`" in TEXT
    command = f"{build_install_command('npu')} {versions}"
    assert ascend_releases.build_npu_install_command() == f"{command}, which go with CANN {newest.cann}"


def test_the_variables_are_those_that_the_doctor_shows():
    named = [name for cells in table("variable", "effect") for name in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(named) == sorted(VARIABLES)


def test_the_pairs_of_mindspore_are_those_that_the_code_goes_by():
    rows = table("MindSpore", "CANN", "Python", "numpy")
    assert {mindspore: cann for mindspore, cann, *_ in rows} == ascend_releases.MINDSPORE
    pins = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "docker/constraints.mindspore.txt").read_text(), re.M))
    assert rows[0][0] == pins["mindspore"]
    assert f"Tested here are {pins['mindspore']} with numpy {pins['numpy']}" in TEXT


def settings():
    """The table of what a run may ask for: by setting, then by device."""
    devices = ("cpu", "cuda", "npu", "mindspore:cpu", "mindspore:ascend")
    rows = table("setting", *(f"`{device}`" for device in devices))
    return {first: dict(zip(devices, cells, strict=True)) for first, *cells in rows}


def test_the_facts_of_devices_are_those_of_the_table():
    from ehm.backends.torch.engine.devices import FACTS

    rows = settings()
    for name, facts in FACTS.items():
        assert rows["collectives"][name] == facts.distributed
        compiles = rows["`run.compile=true`"][name]
        assert compiles == facts.compiler if facts.compiler else compiles.startswith("refused")
        assert rows["AdamW"][name].startswith("fused") == facts.fused_adamw
        assert ("not in float16" in rows["AdamW"][name]) == (not facts.fused_adamw_scales)
        assert set(facts.dtypes) == {"float32", "bfloat16", "float16"}
        if name != "cpu":
            assert rows["`optim.dtype=auto`"][name] == facts.dtypes[0]


def test_the_types_of_mindspores_targets_are_those_of_the_table():
    """Read from the source, since MindSpore is not in this environment."""
    tree = ast.parse((ROOT / "backends/mindspore/engine/devices.py").read_text(encoding="utf-8"))
    (facts,) = (node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "FACTS")
    every = ("float32", "bfloat16", "float16")
    types, auto = settings()["`optim.dtype=float32`, `bfloat16`, `float16`"], settings()["`optim.dtype=auto`"]
    for key, value in zip(facts.keys, facts.values, strict=True):
        target, dtypes = f"mindspore:{key.value}", ast.literal_eval(value.args[1])
        named = types[target].partition(";")[0]
        assert set(dtypes) == set(every if named == "yes" else named.split(", "))
        assert auto[target] == dtypes[0]


def test_the_tolerance_is_the_codes():
    assert f"more than {TOLERANCE} of the largest deviation" in TEXT


def test_the_example_of_a_device_works_with_a_device_that_torch_is_taught(tmp_path):
    """The simulated NPU stands for the device of another package."""
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    code = (
        example.replace("torch_mychip", "torch_npu").replace("mychip", "npu")
        + "print(*backend('npu').describe_device().dtypes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests/simulated")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["bfloat16", "float32"]
