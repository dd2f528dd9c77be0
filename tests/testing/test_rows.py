"""The laws of rows see faults of the engine, each those that it is about."""

import pytest
import torch
from testing.matrix import ask
from torch import nn

from kfac_lab.core.layers import Linear
from kfac_lab.core.moments import Accumulation
from kfac_lab.testing import report

ROWS = ("folded_rows", "swapped_rows", "shared_rows", "routed_rows", "empty_rows")


def found(layer=None):
    torch.manual_seed(0)
    return report(layer or Linear(nn.Linear(3, 2), "here"), inputs=torch.randn(5, 2, 3))


def the_first_dimension_is_the_cases(monkeypatch):
    monkeypatch.setattr("kfac_lab.core.record.grouped", lambda rows, layout, cases: rows)


def shared_rows_are_not_repeated(monkeypatch):
    monkeypatch.setattr("kfac_lab.core.passes.layouts._repeated", lambda *given: None)


def a_is_a_mean_over_what_came(monkeypatch):
    close = Accumulation._close

    def wrong(self, key):
        cases, self._cases = self._cases, self._counts[key[1]]
        close(self, key)
        self._cases = cases

    monkeypatch.setattr(Accumulation, "_close", wrong)


def what_got_nothing_decays(monkeypatch):
    finish = Accumulation.finish

    def wrong(self):
        new = finish(self)
        for key in self._store.keys:
            if key not in self._started:
                self._store.spare[key].mul_(self._epsilon)
        return new

    monkeypatch.setattr(Accumulation, "finish", wrong)


FAULTS = {
    the_first_dimension_is_the_cases: {"folded_rows", "swapped_rows", "routed_rows"},
    shared_rows_are_not_repeated: {"shared_rows"},
    a_is_a_mean_over_what_came: {"routed_rows"},
    what_got_nothing_decays: {"empty_rows"},
}


def test_the_engine_obeys():
    assert {r.law for r in found().results if r.status == "obeyed"} >= set(ROWS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_the_engine_breaks_the_laws_it_is_about(monkeypatch, fault):
    fault(monkeypatch)
    ask(monkeypatch, "layer", *ROWS)
    assert set(found().broken) & set(ROWS) == FAULTS[fault]


def test_rows_of_inputs_and_gradients_that_are_not_as_many():
    """One sentence, and no failed assertion from inside."""

    class Half(Linear):
        def rows_out(self, gradients):
            return super().rows_out(gradients)[:, :1]

    broken = [r for r in found(Half(nn.Linear(3, 2), "here")).results if r.law == "trains"]
    assert broken[0].status == "broken"
    assert "rows_in and rows_out lay a call out as rows" in broken[0].why
