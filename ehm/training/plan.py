"""The length of a run, and a check of its settings once the number of images is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ehm.config import OptimConfig, RunConfig
from ehm.errors import ConfigError

__all__ = ["RunPlan", "check_plan", "plan_run"]


@dataclass(frozen=True)
class RunPlan:
    """The number of steps of a run, and the intervals of checkpoints, measurements and log lines in steps.

    ``total`` is the length of the schedule, and ``last`` the number of steps after which the run ends: fewer if
    ``run.max_steps`` is. The last step is also followed by a checkpoint and a measurement.
    """

    steps_per_epoch: int
    total: int
    last: int
    save_every: int
    measure_every: int
    log_every: int

    def is_save_due(self, done: int) -> bool:
        """Return whether a checkpoint is written once ``done`` steps are done."""
        return done % self.save_every == 0 or done == self.last

    def is_measure_due(self, done: int) -> bool:
        """Return whether the model is measured once ``done`` steps are done."""
        return done % self.measure_every == 0 or done == self.last

    def is_log_due(self, done: int) -> bool:
        """Return whether a line is logged once ``done`` steps are done; checkpoints and measurements also log one."""
        return done % self.log_every == 0

    def describe(self, optim: OptimConfig) -> str:
        """Return the length in words, for example "4 epochs of 2 steps"."""
        if optim.steps is None:
            length = f"{optim.epochs:,} epochs of {self.steps_per_epoch:,} steps"
        else:
            epochs = self.total / self.steps_per_epoch
            length = f"{self.total:,} steps, {epochs:.3g} epochs of {self.steps_per_epoch:,}"
        if self.last == self.total:
            return length
        return f"{length}, of which run.max_steps takes the first {self.last:,} of {self.total:,} steps"


def plan_run(optim: OptimConfig, run: RunConfig, steps_per_epoch: int) -> RunPlan:
    """Return the plan of a run, with all intervals converted from epochs to steps."""
    total = optim.count_steps(steps_per_epoch)
    return RunPlan(
        steps_per_epoch,
        total,
        last=min(total, run.max_steps or total),
        # at least 1, because an interval may be a fraction of an epoch of few steps
        save_every=max(1, round(run.checkpoint_every * steps_per_epoch)),
        measure_every=max(1, round(run.measure_every * steps_per_epoch)),
        log_every=run.log_every,
    )


def check_plan(
    plan: RunPlan, optim: OptimConfig, run: RunConfig, images: int, *, views: int = 1, measures: bool, resumed: bool
) -> list[str]:
    """Check the settings of a run against each other and against the number of ``images``, each in ``views`` copies.

    Returns warnings, one sentence each, about settings that are valid but probably not intended. Raises ConfigError if
    settings contradict each other. For a ``resumed`` run these are warnings too, because an earlier version without
    this check may have begun it. ``measures`` is true for loops that measure the model.
    """
    problems = list(_find_problems(plan, optim, images, views))
    if problems and not resumed:
        raise ConfigError("; ".join(problems))
    return [*problems, *_find_unlikely(plan, optim, run, measures)]


def _find_problems(plan: RunPlan, optim: OptimConfig, images: int, views: int) -> Iterator[str]:
    # the loader would make smaller batches, at a learning rate that is scaled for larger ones
    if optim.batch_size > images * views:
        copies = f" with {views} masks each" if views > 1 else ""
        yield (
            f"optim.batch_size {optim.batch_size}: there are only {images:,} images{copies} to fill it, and the "
            f"learning rate {optim.lr:.2e} is scaled for {optim.batch_size}; set optim.batch_size={images * views} or "
            "less"
        )
    if optim.min_lr > optim.lr:
        yield (
            f"optim.min_lr {optim.min_lr:g}: is above the learning rate {optim.lr:.2e} (optim.base_lr "
            f"{optim.base_lr:g} * {optim.batch_size} / 256), which should fall to it; set a lower one"
        )
    warmup = optim.count_warmup_steps(plan.steps_per_epoch)
    if warmup > plan.total:
        key = "warmup_epochs" if optim.warmup_steps is None else "warmup_steps"
        yield (
            f"optim.{key} {getattr(optim, key):g}: the warm-up takes {warmup:,.0f} steps, and the run has "
            f"{plan.total:,} ({plan.steps_per_epoch:,} in an epoch); set optim.warmup_steps={plan.total // 10} or "
            "another part of them"
        )
    # a warm-up that is longer than the run has been reported already
    falls = [share for share in optim.milestones if share * plan.total < warmup <= plan.total]
    if optim.schedule == "step" and falls:
        yield (
            f"optim.milestones: the rate falls at step {falls[0] * plan.total:,.0f}, within the warm-up of "
            f"{warmup:,.0f} steps; set a later milestone or a shorter warm-up"
        )


def _find_unlikely(plan: RunPlan, optim: OptimConfig, run: RunConfig, measures: bool) -> Iterator[str]:
    warmup = optim.count_warmup_steps(plan.steps_per_epoch)
    if plan.last < plan.total and plan.last <= warmup:
        yield f"run.max_steps {plan.last:,}: the run ends within the warm-up of {warmup:,.0f} steps"
    intervals = [("checkpoint_every", plan.save_every, "the only checkpoint is that of the end")]
    if measures:
        intervals.append(("measure_every", plan.measure_every, "the only measurement is that of the end"))
    for key, steps, consequence in intervals:
        if steps > plan.last:
            yield f"run.{key} {getattr(run, key):g}: is more than the run's {plan.last:,} steps; {consequence}"
