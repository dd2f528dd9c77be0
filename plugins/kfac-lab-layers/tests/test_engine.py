"""Whole steps of the engine: modes, buffers, paths of the tangents, saving, the meta device."""

import copy

import pytest
import torch
from devices import here
from layer_samples import causal
from torch import nn

import kfac_lab as kl
from kfac_lab.core import linalg
from kfac_lab.core.dispatch import DispatchMode
from kfac_lab.core.program.calls import tensors
from kfac_lab.engine import attach

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BUSY = {  # everything a step may do is due within a few steps
    "estimator": "sampled(fraction=0.5)",
    "quadratic_model": "exact_fisher(fraction=0.5)",
    "damping": "levenberg_marquardt(lam=1.0)",
    "schedule": "periodic(T1=2, T2=4, T3=4, burn_in=1)",
    "average": "none",
}


def busy(cases, **slots):
    """The paper's recipe on full batches of ``cases``."""
    batch = {"batch": f"constant(size={cases})"}
    return kl.Recipe.named("paper").replace(**{**BUSY, **batch, **slots})


class Transformer(nn.Module):
    """Everything that is claimed, around causal attention; logits for each position."""

    def __init__(self, vocabulary=7, width=8, dropout=0.0):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.first = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, dropout, batch_first=True)
        self.second = nn.RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.Tanh(), nn.Linear(12, width))
        self.groups = nn.GroupNorm(2, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        """Logits ``[N, T, vocabulary]``."""
        mask = torch.ones(tokens.shape[1], tokens.shape[1], device=tokens.device).triu(1).bool()
        x = self.table(tokens)
        y = self.first(x)
        x = x + self.attention(y, y, y, attn_mask=mask, is_causal=True, need_weights=False)[0]
        x = x + self.mlp(self.second(x))
        return self.head(self.groups(x.transpose(1, 2)).transpose(1, 2))


def language(cases=32, **arguments):
    """The next token is the sum of the last two."""
    tokens = torch.randint(0, 7, (cases, 6))
    for t in range(2, 6):
        tokens[:, t] = (tokens[:, t - 1] + tokens[:, t - 2]) % 7
    return kl.Problem(
        model=Transformer(**arguments),
        likelihood="categorical",
        inputs=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
    )


def images(cases=24, track=True):
    """A small net with BatchNorm over pixels and over units."""
    model = nn.Sequential(
        nn.BatchNorm2d(2, track_running_stats=track),
        nn.Flatten(),
        nn.Linear(18, 6),
        nn.BatchNorm1d(6, track_running_stats=track),
        nn.Tanh(),
        nn.Linear(6, 3),
    )
    x = torch.randn(cases, 2, 3, 3) * 3 + 1
    y = (x.flatten(1).sum(1) > 18).long()
    return kl.Problem(model=model, likelihood="categorical", inputs=x, targets=y)


# --- BatchNorm ------------------------------------------------------------------------------------


def test_running_statistics_are_updated_once_per_step():
    """By the main pass alone, whatever else looked at the batch: as a plain call would."""
    problem = images()
    problem.model.double()
    problem.inputs = problem.inputs.double()
    run = kl.Run(problem, busy(24), device=here())
    for step in range(1, 6):
        twin = copy.deepcopy(problem.model).train()
        with torch.no_grad():
            twin(problem.inputs)  # the whole set, in another order
        run.advance(1)
        for (name, ours), theirs in zip(problem.model.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=name)
        assert int(problem.model[3].num_batches_tracked) == step


def test_in_eval_mode_the_statistics_are_frozen():
    """And scale and shift are trained."""
    problem = images()
    problem.model(problem.inputs)
    problem.model.eval()
    buffers = {name: b.clone() for name, b in problem.model.named_buffers()}
    scale = problem.model[3].weight.detach().clone()
    run = kl.Run(problem, busy(24), device=here()).advance(6)
    for name, buffer in problem.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert not torch.equal(problem.model[3].weight, scale)
    assert not problem.model.training
    assert run.history["loss"][-1] < run.history["loss"][0]


@pytest.mark.parametrize(
    ("recipe", "track"),
    [
        ("robust", True),
        ("small_batch", False),
        pytest.param("robust", False, marks=pytest.mark.soak),
        pytest.param("small_batch", True, marks=pytest.mark.soak),
    ],
)
def test_batch_norm_trains(recipe, track):
    """A model that couples its cases, by both default recipes."""
    recipe = kl.Recipe.named(recipe).replace(batch="constant(size=24)")
    run = kl.Run(images(track=track), recipe, device=here()).advance(25)
    assert run.history["loss"][-1] < 0.7 * run.history["loss"][0]


# --- transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dropout", "structure"),
    [
        (0.0, "block_diagonal"),
        (0.1, "block_tridiagonal"),
        pytest.param(0.0, "block_tridiagonal", marks=pytest.mark.soak),
        pytest.param(0.1, "block_diagonal", marks=pytest.mark.soak),
    ],
)
def test_a_transformer_trains(structure, dropout):
    """Every layer that is claimed, in one model, with forward-mode tangents."""
    run = kl.Run(language(dropout=dropout), busy(32, structure=structure), device=here())
    assert {row.tangents for row in run.coverage()} == {"forward"}
    run.advance(30)
    assert run.history["loss"][-1] < 0.6 * run.history["loss"][0]


@pytest.mark.parametrize("training", [True, False])
def test_torchs_own_encoder(training):
    """In eval mode torch has a fast path that calls no module; rows are recorded all the same."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=False)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    x = torch.randn(24, 4, 8)
    problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=x.flip(1))
    run = kl.Run(problem, busy(24), device=here())
    assert not {row.claimed_by for row in run.coverage()} & {"fallback"}
    run.advance(12)
    assert run.history["loss"][-1] < 0.95 * run.history["loss"][0]


class Unbatched(nn.Module):
    """Attends over the cases."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        """All cases as one sequence."""
        return self.attention(x, x, x, attn_mask=causal(len(x)))[0]


def test_attention_without_cases_is_refused():
    """One sentence, before anything has changed."""
    x = torch.randn(6, 4)
    problem = kl.Problem(model=Unbatched(), likelihood="gaussian", inputs=x, targets=x)
    with pytest.raises(kl.CoverageError, match=r"attention is called on \(3, 4\), without"):
        kl.Run(problem, busy(6), device=here())


def test_a_large_vocabulary_needs_no_dense_rows(monkeypatch):
    """With ``factor_a="diagonal"`` nothing of size cases × vocabulary, or vocabulary², is made."""
    model = nn.Sequential(nn.Embedding(200_000, 2), nn.Linear(2, 3))
    tokens = torch.randint(0, 200_000, (64, 4))
    problem = kl.Problem(model=model, likelihood="categorical", inputs=tokens, targets=tokens % 3)
    rules = {"Embedding": "kronecker(factor_a='diagonal')", "*": "kronecker"}
    largest = 0

    class Sizes(DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in tensors(out) if not t.is_sparse)])
            return out

    run = kl.Run(
        problem, busy(64, block=rules, quadratic_model="none", momentum="fixed"), device=here()
    )
    with Sizes():
        run.advance(5)
    assert largest == 400_000  # the table


# --- saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [language, images])
def test_saved_and_loaded_bit_for_bit(make, tmp_path):
    """Three steps, a file, three more: as six."""
    torch.manual_seed(3)
    first = make()
    torch.manual_seed(3)
    second = make()
    run = kl.Run(first, busy(16), seed=5, device=here()).advance(3)
    run.save(tmp_path / "run.pt")
    run.advance(3)
    loaded = kl.Run.load(tmp_path / "run.pt", problem=second).advance(3)
    assert list(run.history["loss"]) == list(loaded.history["loss"])
    state, again = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)


# --- the meta device ------------------------------------------------------------------------------


class OneDevice(DispatchMode):
    """Fails where an operation sees two devices; an upload of batch indices is no such thing."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = ({t.device.type for t in tensors(tree)} for tree in ((args, kwargs), out))
        upload = func._schema.name == "aten::_to_copy" and (given, made) == ({"cpu"}, {"meta"})
        if len(given | made) > 1 and not upload:
            raise AssertionError(f"{func} saw {sorted(given)} and made {sorted(made)}")
        self.operations += "meta" in made
        return out


def canned(tensors):
    """Every flag is true, every status good; the γ that wins is the current one."""
    assert all(t.dim() == 0 and t.device.type == "meta" for t in tensors)
    return [1.0 if not t.dtype.is_floating_point or n else 0.0 for n, t in enumerate(tensors)]


@pytest.mark.parametrize(
    ("make", "block"),
    [
        (language, "kronecker"),
        (language, "kronecker(factor_a='diagonal')"),
        (language, "diagonal"),
        (images, "kronecker"),
        pytest.param(images, "kronecker(factor_a='diagonal')", marks=pytest.mark.soak),
        pytest.param(images, "diagonal", marks=pytest.mark.soak),
    ],
)
def test_whole_steps_on_the_meta_device(make, block, monkeypatch):
    """No value exists there, so none is read or mixed in."""
    monkeypatch.setattr(linalg.reading, "transfer", canned)
    problem = make()
    problem.model.to("meta")
    problem.inputs, problem.targets = problem.inputs.to("meta"), problem.targets.to("meta")
    engine = attach(problem, busy(16, block=block), 0)  # a Run would keep snapshots on the CPU
    mode = OneDevice()
    with mode:
        for _ in range(5):
            engine.step()
    assert mode.operations > 500
    assert all(p.device.type == "meta" for p in problem.model.parameters())
