"""The events that observers hear, in order."""

import pytest
import torch
from invariants.helpers import problem_of, recipe_of, run_of

import kfac_lab as kl
from kfac_lab.hooks import lab

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


class Listener:
    """Notes every event."""

    def __init__(self):
        self.seen = []

    @kl.hookimpl
    def kfac_on_run_start(self, run):
        self.seen.append(("start", run.step))

    @kl.hookimpl
    def kfac_on_step(self, run, record):
        self.seen.append(("step", record.step))
        assert isinstance(record.loss, torch.Tensor)  # the unread record

    @kl.hookimpl
    def kfac_on_swap(self, run, swap):
        self.seen.append(("swap", swap.step))

    @kl.hookimpl
    def kfac_on_run_error(self, run, error):
        self.seen.append(("error", type(error).__name__))

    @kl.hookimpl
    def kfac_on_run_end(self, run):
        self.seen.append(("end", run.step))


@pytest.fixture
def listener():
    found = Listener()
    lab.load_module(found, "listener")
    yield found
    lab.unload("listener")


def test_events_come_in_order(listener):
    run = run_of().advance(2)
    run.swap(damping="tied")
    run.advance(1)
    assert listener.seen == [
        ("start", 0),
        ("step", 1),
        ("step", 2),
        ("end", 2),
        ("swap", 2),
        ("start", 2),
        ("step", 3),
        ("end", 3),
    ]


def test_an_error_is_an_event_too(listener):
    problem = problem_of(data=lambda step, size: 1 / 0)
    run = kl.Run(problem, recipe_of(), device="cpu")
    with pytest.raises(ZeroDivisionError):
        run.advance(2)
    assert listener.seen == [("start", 0), ("error", "ZeroDivisionError")]
