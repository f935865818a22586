"""`ehm doctor --operators` runs every objective, task, encoder family, form and option that there is.

Nothing is run here: the configurations are held to the tables and types of ehm.config.
"""

from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin

import pytest

from ehm.backends.torch import backend
from ehm.backends.torch.diagnosis.parts import PARTS, encoders, pretraining, tasks
from ehm.config import FinetuneConfig, RetrievalConfig, SegmentationConfig
from ehm.config.encoders import FAMILIES, Rotary, VitForm
from ehm.config.objectives import OBJECTIVES
from ehm.config.pretraining import MaskConfig, Masking, ModelConfig
from ehm.config.sections import LoraConfig
from ehm.config.tasks.segmentation import SlideConfig
from ehm.masking import make_masker
from ehm.tasks.registry import TASKS

LEFT_OUT = {
    "schedule": {"linear", "sqrt"},  # moves the depth of masks, on the host
    "build": {"auto"},  # is host or device
    "adapt_channels": {"first", "mean", "repeat"},  # changes weights on the host
}
"""Options that add no operator."""


def options(section):
    """Options of each key of a section that has a choice of names, or is true or false."""
    for name, field in section.model_fields.items():
        is_union = get_origin(field.annotation) in (Union, UnionType)
        choices = set()
        for kind in get_args(field.annotation) if is_union else (field.annotation,):
            if kind is bool:
                choices |= {True, False}
            elif get_origin(kind) is Literal:
                choices |= set(get_args(kind))
        if choices:
            yield name, choices - LEFT_OUT.get(name, set()) - {None}


def assert_all_options_are_run(section, values):
    for name, choices in options(section):
        seen = {getattr(value, name) for value in values}
        assert choices <= seen, f"{section.__name__}.{name}: {choices - seen} is never run"


@pytest.fixture(scope="module")
def cpu():
    return backend("cpu")


@pytest.fixture
def pretrained(monkeypatch, cpu):
    """The configurations of all objectives' steps."""
    configs = []
    monkeypatch.setattr(pretraining, "_take_step", lambda backend, config: configs.append(config) or ())
    for objective in OBJECTIVES:
        assert not list(PARTS[objective](cpu, "float32"))
    return configs


@pytest.fixture
def trained(monkeypatch, cpu):
    """The configurations of all tasks' steps."""
    configs = []
    monkeypatch.setattr(tasks, "_take_task_steps", lambda backend, config: configs.append(config) or ())
    for task in TASKS:
        assert not list(PARTS[task](cpu, "float32"))
    return configs


def test_every_objective_and_task_is_a_part():
    assert {*OBJECTIVES, *TASKS} <= {*PARTS}
    assert tasks.TASK_SETTINGS.keys() == tasks._CONFIGS.keys() == tasks._STEPS.keys() == TASKS.keys()
    assert {task: entry.config for task, entry in TASKS.items()} == tasks._CONFIGS
    assert not any(":" in name for name in PARTS)  # MODULE:FUNCTION means a network of the user's


def test_every_family_of_encoders_is_run(pretrained, trained):
    assert encoders.ENCODERS.keys() == tasks._SIDES.keys() == FAMILIES.keys()
    combinations = {(config.objective, config.spec.family) for config in pretrained}
    takes = {"mae": ["vit"], "feature": ["vit"], "simmim": ["vit", "swin"], "beit": ["vit", "swin"]}
    assert combinations == {(objective, family) for objective, families in takes.items() for family in families}
    assert {(config.task, config.model.encoder.split("_")[0]) for config in trained} == {
        (task, family) for task in TASKS for family in FAMILIES
    }


def test_the_forms_have_whatever_a_form_can_have(pretrained):
    forms = [VitForm.model_validate(form) for form in encoders.FORMS.values()] + [VitForm()]
    assert_all_options_are_run(VitForm, forms)
    assert_all_options_are_run(Rotary, [form.rotary for form in forms])
    assert {form.registers for form in forms} > {0}
    assert {config.model.form for config in pretrained} >= set(forms)


def test_every_kind_of_masking_is_run(pretrained):
    config = pretrained[0]

    def kind(masking, build="host"):
        return type(make_masker(masking, config.masks, config.units, build))

    run = {kind(each.masking, "device" if each.mask.build == "device" else "host") for each in pretrained}
    there_are = {kind(masking) for masking in get_args(Masking)} | {kind("evolved", "device")}
    assert run == there_are


def test_every_option_of_pretraining_is_run(pretrained):
    assert_all_options_are_run(ModelConfig, [config.model for config in pretrained])
    assert_all_options_are_run(MaskConfig, [config.mask for config in pretrained])
    pytest.importorskip("peft", reason="low-rank updates are left out without peft")
    adapted = [config.lora for config in pretrained if config.lora.rank is not None]
    assert {target for lora in adapted for target in lora.targets} == {"attn.qkv", "attn.proj", "mlp"}
    assert_all_options_are_run(LoraConfig, [config.lora for config in pretrained])
    assert {config.mask.views for config in pretrained} == {1, 2}
    assert {config.run.grad_checkpointing for config in pretrained} == {True, False}


def test_both_kinds_of_tokenizers_are_run(pretrained):
    suffixes = {Path(config.model.tokenizer).suffix for config in pretrained if config.objective == "beit"}
    assert suffixes == {"", ".safetensors"}


def test_every_option_of_tasks_is_run(trained):
    assert {config.optimizer for config in trained} == {"adamw", "lars", "sgd"}
    for kind in (FinetuneConfig, RetrievalConfig):
        own = [config for config in trained if isinstance(config, kind)]
        assert {config.pool for config in own} == set(get_args(kind.model_fields["pool"].annotation))
    sliding = [config.inference for config in trained if isinstance(config, SegmentationConfig)]
    assert_all_options_are_run(SlideConfig, sliding)
    relative = [config for config in trained if config.model.init != "scratch"]
    assert {config.task for config in relative} == {*TASKS}
