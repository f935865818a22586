"""The registry of tasks agrees with the configurations, the recipes and the code that its rows name."""

import pytest

from ehm.config import load_config
from ehm.tasks.base import Task
from ehm.tasks.registry import TASKS, find_task_by_kind


@pytest.mark.parametrize("name", TASKS)
def test_a_row_names_what_belongs_together(name):
    entry = TASKS[name]
    assert entry.name == name == entry.config.model_fields["task"].default
    assert load_config(entry.config, entry.recipe).task == name
    assert find_task_by_kind(entry.kind) is entry


@pytest.mark.parametrize("name", TASKS)
def test_the_code_is_a_task_with_all_that_the_commands_call(name):
    task_class = TASKS[name].load_class()
    assert issubclass(task_class, Task)
    assert not task_class.__abstractmethods__
    has_untrained = "open_untrained" in vars(task_class)
    assert has_untrained == TASKS[name].measures_untrained
    assert set(task_class.measured_keys) <= set(TASKS[name].config.model_fields)


def test_a_kind_that_is_no_tasks_is_not_found():
    assert find_task_by_kind("pretrain") is None
