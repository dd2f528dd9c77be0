"""LSTM, GRU and RNN: torch's numbers, the gradient from rows, and the blocks against three oracles.

The oracles: the dense Fisher of one case and one step, where ā ⊗ g is all there is; the same net
spelled with ``nn.Linear``, called once for each step; a hand-written G of one gate.
"""

import itertools

import pytest
import torch
from devices import here
from layer_samples import Around, double, network_of
from test_fisher import blocks_of, check_blocks
from test_rows import check_rows
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import kfac_lab as kl


def everything(module, x):
    """Outputs and last states as one tensor, cases first."""
    out, state = module(x)
    first = out if module.batch_first else out.transpose(0, 1)
    states = state if isinstance(state, tuple) else (state,)
    return torch.cat([first.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)], 1)


KINDS = {
    "LSTM": (nn.LSTM, {}),
    "LSTM, projected": (nn.LSTM, {"proj_size": 2}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {}),
    "RNN, relu": (nn.RNN, {"nonlinearity": "relu"}),
}
SHAPES = list(itertools.product([1, 2], [False, True], [True, False], [True, False]))


@pytest.mark.parametrize(("layers", "both", "bias", "first"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind, layers, both, bias, first):
    """Outputs are torch's and Σ g āᵀ is the gradient, for every layer and direction."""
    make, more = KINDS[kind]
    module = double(make(3, 4, layers, bias=bias, batch_first=first, bidirectional=both, **more))
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    model = Around(module, everything)
    network, rows_in, _ = check_rows(model, x if first else x.transpose(0, 1), 5)
    maps = layers * (1 + both) * (3 if "proj" in kind else 2)
    assert len(network.uses) == maps and {a.shape[1] for a in rows_in} == {6}


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_is_given(kind):
    """From where the sequence before it has stopped."""
    make, more = KINDS[kind]
    module = double(make(3, 4, 2, batch_first=True, bidirectional=True, **more))

    def twice(m, x):
        out, state = m(x)
        again, _ = m(out[..., :3], state)
        return again

    _, rows_in, _ = check_rows(Around(module, twice), torch.randn(5, 6, 3).double(), 5)
    assert {a.shape[1] for a in rows_in} == {12}  # two calls


LENGTHS = torch.tensor([3, 6, 1, 4, 6])


def of_lengths(state=False, sort=True):
    """A call on packed sequences; outputs and states as one tensor, cases first."""

    def call(module, x):
        order = torch.arange(5) if sort else LENGTHS.argsort(descending=True)
        packed = pack_padded_sequence(
            x[order], LENGTHS[order], batch_first=True, enforce_sorted=not sort
        )
        first = None
        if state:
            count = module.num_layers * (1 + module.bidirectional)
            wide = x.new_ones(count, 5, module.hidden_size) * x[order, 0, 0][None, :, None]
            first = (wide[..., : module.proj_size or None], wide.sin())
            first = first if isinstance(module, nn.LSTM) else first[0]
        out, last = module(packed, first)
        out, _ = pad_packed_sequence(out, batch_first=True)
        states = last if isinstance(last, tuple) else (last,)
        flat = [out.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)]
        return torch.cat(flat, 1)

    return call


@pytest.mark.parametrize("call", [of_lengths(), of_lengths(True), of_lengths(True, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind, call):
    """Torch's outputs, and Σ g āᵀ over the steps that there are is the gradient."""
    make, more = KINDS[kind]
    module = double(make(3, 4, 2, bidirectional=True, **more))
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    model, steps = Around(module, call), int(LENGTHS.sum())
    network, rows_in, _ = check_rows(model, x, steps)
    assert {tuple(a.shape[:2]) for a in rows_in} == {(steps, 1)} and len(network.uses) >= 8


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(make, bias):
    """Called once for each step by somebody's own loop."""

    def loop(cell, x):
        state, seen = None, []
        for t in range(x.shape[1]):
            state = cell(x[:, t], state)
            seen.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(seen, 1)

    model = Around(double(make(3, 4, bias=bias)), loop)
    network, rows_in, _ = check_rows(model, torch.randn(5, 6, 3).double(), 5)
    assert [use.layer.path for use in network.uses] == ["module.ih", "module.hh"]
    assert [a.shape for a in rows_in] == [(5, 6, 3 + bias), (5, 6, 4 + bias)]


def test_in_single_precision():
    """Torch's numbers to 1e-6."""
    for make, more in KINDS.values():
        module = make(8, 16, 2, batch_first=True, bidirectional=True, **more)
        x = torch.randn(4, 20, 8)
        layer = kl.lab.claim(module, "").answer[0]
        plain, _ = module(x)
        again = layer.record(module, (x,), {}, None).output[0]
        assert float((again - plain).detach().abs().max()) < 1e-6


def test_dropout_between_layers_is_torchs():
    """From the same generator, the same mask."""
    for first in (True, False):
        module = nn.LSTM(3, 4, 3, batch_first=first, dropout=0.5).double().train()
        x = torch.randn(5, 6, 3, dtype=torch.float64)
        layer = kl.lab.claim(module, "").answer[0]
        torch.manual_seed(3)
        plain, _ = module(x)
        torch.manual_seed(3)
        again = layer.record(module, (x,), {}, None).output[0]
        torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(layer.record(module, (x,), {}, None).output[0], plain)


class OneStep(nn.Module):
    """A recurrent module over one step from a given state, and a Linear."""

    def __init__(self, make, **more):
        super().__init__()
        self.cell, self.last = make(3, 4, batch_first=True, **more), nn.Linear(4, 2)

    def forward(self, x):
        """Of ``[N, 7]``: input and state."""
        h = x[:, 3:].unsqueeze(0)
        state = (h, 0.5 * h) if isinstance(self.cell, nn.LSTM) else h
        return self.last(self.cell(x[:, :3].unsqueeze(1), state)[0][:, 0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_one_case_and_one_step(kind):
    """The whole block, the parts beside the gates' own included."""
    model = double(OneStep(KINDS[kind][0]))
    found = check_blocks(model, torch.randn(1, 7).double())
    assert set(found) == {"cell.ih_l0", "cell.hh_l0", "last"}


def test_a_linear_recurrence():
    """Where no relu is at rest a step is linear: exact for any number of cases."""
    model = double(OneStep(nn.RNN, nonlinearity="relu"))
    with torch.no_grad():
        model.cell.bias_ih_l0.add_(50)
    check_blocks(model, torch.randn(9, 7).double())


class Spelled(nn.Module):
    """An LSTM of ``nn.Linear`` modules: the same function of the same parameters."""

    def __init__(self, lstm, head):
        super().__init__()
        width = lstm.hidden_size
        self.ih, self.hh = nn.Linear(lstm.input_size, 4 * width), nn.Linear(width, 4 * width)
        self.head = head
        self.ih.weight, self.ih.bias = lstm.weight_ih_l0, lstm.bias_ih_l0
        self.hh.weight, self.hh.bias = lstm.weight_hh_l0, lstm.bias_hh_l0

    def forward(self, x):
        h = c = x.new_zeros(len(x), self.hh.in_features)
        seen = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.ih(x[:, t]) + self.hh(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            seen.append(h)
        return self.head(torch.stack(seen, 1))


class Sequence(nn.Module):
    """An LSTM, and a class for each step."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def test_two_spellings_of_one_function():
    """The factors are those of the Linears that are called once for each step."""
    model, x = double(Sequence()), torch.randn(6, 7, 3).double()
    spelled = Spelled(model.lstm, model.head)
    torch.testing.assert_close(spelled(x), model(x), rtol=1e-12, atol=1e-12)
    start = [p.detach().clone() for p in model.parameters()]
    ours = [block for block, _, _ in blocks_of(model, x, "categorical").values()]
    with torch.no_grad():
        for p, old in zip(model.parameters(), start, strict=True):
            p.copy_(old)
    theirs = [block for block, _, _ in blocks_of(spelled, x, "categorical").values()]
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert float(a.norm()) > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_they_train(kind):
    """In the default recipe, without a fallback."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = KINDS[kind][0](3, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(self.body(x)[0][:, -1])

    x = torch.randn(64, 5, 3)
    y = (x[:, :, 0].sum(1) > 0).long()
    problem = kl.Problem(model=Last(), likelihood="categorical", inputs=x, targets=y)
    run = kl.Run(
        problem, kl.Recipe.named("robust").replace(batch="constant(size=64)"), device=here()
    )
    assert {r.kind for r in run.coverage()} == {"Gates", "Linear"}
    run.advance(40)
    assert run.history["loss"][-1] < 0.2 * run.history["loss"][0]


def test_calls_without_cases_are_refused():
    """One sentence each, naming the module."""
    module = nn.LSTM(3, 4)
    layer = kl.lab.claim(module, "body").answer[0]
    with pytest.raises(kl.CoverageError, match=r"^body is called on \(6, 3\), without a dimension"):
        layer.record(module, (torch.randn(6, 3),), {}, None)
    cell = nn.GRUCell(3, 4)
    layer = kl.lab.claim(cell, "body").answer[0]
    with pytest.raises(kl.CoverageError, match=r"^body is called on \(3,\), without"):
        layer.record(cell, (torch.randn(3),), {}, None)


def test_a_frozen_map_is_left_out():
    """The others are claimed."""
    module = nn.LSTM(3, 4)
    module.weight_hh_l0.requires_grad_(False)
    module.bias_hh_l0.requires_grad_(False)
    assert network_of(module).names == ("weight_ih_l0", "bias_ih_l0")
