"""Inputs, outputs and targets as people have them: tuples, dicts, dataclasses.

Two spellings of one function get the same update.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from engine.spelled_inputs import SCALE, N, X, Y


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


class Net(nn.Module):
    """A classifier of two inputs; ``form`` says in what its answer comes."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.form = nn.Linear(4, 5), nn.Linear(5, 3), form
        self.double()

    def forward(self, x: Tensor, scale: Tensor | None = None, temperature: float = 1.0) -> Any:
        h = torch.tanh(self.first(x))
        z = self.last(h * scale if scale is not None else h) / temperature
        if self.form == "tensor":
            return z
        if self.form == "dataclass":
            return Answer(z, h)
        return {"logits": z, "hidden": h} if self.form == "dict" else (z, h)


class OneInput(Net):
    """The same function of one tensor that holds both inputs."""

    def forward(self, x: Tensor) -> Tensor:
        # whole tensors, as the two inputs are: rows of another stride may have other last bits
        found: Tensor = super().forward(x[:, :4].contiguous(), x[:, 4:].contiguous())
        return found


def trained(model: nn.Module, inputs: Any, steps: int = 3, **options: Any) -> list[Tensor]:
    opt = kl.KFAC(model, **options)
    for _ in range(steps):
        opt.step(inputs, Y)
    return [p.detach() for p in model.parameters()]


def wanted() -> list[Tensor]:
    """Of the model of one tensor."""
    return trained(OneInput(), torch.cat([X, SCALE], 1))


@pytest.mark.parametrize(
    "inputs",
    [
        (X, SCALE),
        [X, SCALE],
        {"x": X, "scale": SCALE},
        {"scale": SCALE, "x": X, "temperature": 1.0},
        (X, SCALE, 1.0),
    ],
    ids=["tuple", "list", "dict", "dict and a number", "tuple and a number"],
)
def test_spellings_of_inputs(inputs: Any) -> None:
    for a, b in zip(trained(Net(), inputs), wanted(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "form,outputs",
    [
        ("dataclass", "logits"),
        ("dict", "logits"),
        ("tuple", 0),
        ("tuple", -2),
        ("tuple", lambda out: out[0]),
        ("dataclass", lambda out: out.logits),
    ],
)
def test_spellings_of_outputs(form: str, outputs: Any) -> None:
    for a, b in zip(trained(Net(form), (X, SCALE), outputs=outputs), wanted(), strict=True):
        assert torch.equal(a, b)


def test_a_run_on_dicts_evaluates_and_trains_by_every_method() -> None:
    for recipe in ("robust", "adam", "nag"):
        model = Net("dict")
        problem = kl.Problem(
            model=model,
            likelihood=nn.CrossEntropyLoss(),
            inputs={"x": X, "scale": SCALE},
            targets=Y,
            outputs="logits",
            test=({"x": X, "scale": SCALE}, Y),
        )
        run = kl.Run(problem, recipe=recipe)
        with torch.no_grad():
            before = float(functional.cross_entropy(model(X, SCALE)["logits"], Y))
        assert run.evaluate("test").loss == pytest.approx(before)
        run.advance(5)
        assert run.evaluate("train").loss < before


def test_a_dataset_of_dicts() -> None:
    data = [({"x": X[n], "scale": SCALE[n]}, int(Y[n])) for n in range(N)]
    problem = kl.Problem(
        model=Net("dataclass"), likelihood="categorical", data=data, outputs="logits"
    )
    run = kl.Run(problem, recipe="robust")
    run.advance(2)
    assert float(run.history["loss"][1]) < float(run.history["loss"][0])


def test_a_preconditioner_sees_calls_of_every_kind() -> None:
    found = []
    for call in (
        lambda m, rows: m(torch.cat([X, SCALE], 1)[rows]),
        lambda m, rows: m(X[rows], SCALE[rows]),
        lambda m, rows: m(X[rows], scale=SCALE[rows]),
        lambda m, rows: m(scale=SCALE[rows], x=X[rows], temperature=1.0)["logits"],
    ):
        last = len(found) == 3
        model = OneInput() if not found else Net("dict" if last else "tensor")
        pre = kl.Preconditioner(model, outputs="logits" if last else None)
        for rows in (slice(0, 16), slice(16, N)):  # accumulated over two passes
            loss = functional.cross_entropy(call(model, rows), Y[rows], reduction="sum") / N
            loss.backward()
        pre.step()
        found.append([p.grad for p in model.parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "form,options,inputs,words",
    [
        ("dataclass", {}, (X, SCALE), "an Answer|a Answer.*'logits', 'hidden'.*outputs='logits'"),
        ("dict", {"outputs": "logit"}, (X, SCALE), "outputs='logit' is none.*'logits', 'hidden'"),
        ("tuple", {"outputs": 2}, (X, SCALE), "outputs=2 is none"),
        ("tuple", {}, (X, SCALE), "outputs=0"),
        ("tensor", {"outputs": "logits"}, (X, SCALE), "outputs='logits' is none"),
        ("tensor", {}, (X, SCALE[:5]), "a row for each case"),
        ("tensor", {}, {"y": X}, "does not take inputs"),
        ("tensor", {}, (1.0, None), "holds no tensor"),
    ],
)
def test_what_does_not_fit_is_told(form: str, options: Any, inputs: Any, words: str) -> None:
    opt = kl.KFAC(Net(form), **options)
    with pytest.raises(kl.DataError, match=words):
        opt.step(inputs, Y)
    assert opt.step_count == 0
