"""The hooks by which a run is observed."""

from __future__ import annotations

from typing import Any

from kfac_lab.hooks.specs.markers import hookspec


@hookspec
def kfac_on_run_start(run: Any) -> None:
    """A run is about to make its first step, or to go on after a pause.

    ```python
    import kfac_lab as kl

    started = []


    @kl.hookimpl
    def kfac_on_run_start(run):
        started.append(run.problem.name)
    ```
    """


@hookspec
def kfac_on_step(run: Any, record: Any) -> None:
    """A step was made and committed. The record's numbers are tensors that nobody has read: keep
    them and read them later, in one go, or training waits for the device at every step.

    ```python
    import kfac_lab as kl

    losses = []


    @kl.hookimpl
    def kfac_on_step(run, record):
        losses.append(record.loss)
    ```
    """


@hookspec
def kfac_on_swap(run: Any, swap: Any) -> None:
    """Parts were swapped at a step boundary: ``swap.step``, ``swap.parts`` and ``swap.before`` say
    which.

    ```python
    import kfac_lab as kl

    diary = []


    @kl.hookimpl
    def kfac_on_swap(run, swap):
        for slot, text in swap.parts.items():
            diary.append(f"after step {swap.step}: {slot} {swap.before[slot]} → {text}")
    ```
    """


@hookspec
def kfac_on_run_error(run: Any, error: BaseException) -> None:
    """A run stopped with an error, which is raised again after every observer was told.

    ```python
    import kfac_lab as kl

    failures = []


    @kl.hookimpl
    def kfac_on_run_error(run, error):
        failures.append(f"{run.problem.name}: {type(error).__name__}: {error}")
    ```
    """


@hookspec
def kfac_on_run_end(run: Any) -> None:
    """A run has made the steps that it was asked for, or was stopped.

    ```python
    import kfac_lab as kl

    lengths = []


    @kl.hookimpl
    def kfac_on_run_end(run):
        lengths.append(len(run.history))
    ```
    """
