"""KFAC and Preconditioner: the familiar faces of the engine, for one's own training loop.

``KFAC`` is the whole algorithm on the batches that you hand over; ``Preconditioner`` leaves the
loop, the loss and the optimiser to you and turns ``p.grad`` into the preconditioned gradient. Both
see the model through its layers, so they take the module, not its parameters.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from kfac_lab import engine as _engine
from kfac_lab.core import archive, linalg, seeds
from kfac_lab.core.capture import left_out
from kfac_lab.core.cases import Call, Cases, Unlabelled, as_cases, concatenated, tensors_of
from kfac_lab.core.exchange import exchange
from kfac_lab.core.likelihood import Likelihood, Selector
from kfac_lab.core.literal import brief
from kfac_lab.core.parameters import whole_number
from kfac_lab.core.passes import Seen
from kfac_lab.core.problem import Drawn, Problem, weighed
from kfac_lab.core.schema import anything, check, maybe, record, table, text, whole
from kfac_lab.core.state import Due, StepRecord, Swap
from kfac_lab.core.traits import CollectiveTraits, traits
from kfac_lab.errors import CheckpointError, DataError, KfacLabError, RecipeError
from kfac_lab.history import History
from kfac_lab.hooks import Recipe
from kfac_lab.run import Coverage, carried_out, planned, warn_elsewhere, where
from kfac_lab.run.saving import WHERE

__all__ = ["KFAC", "Preconditioner"]

FORMAT = 2  # of a state; 1 had no seal
HISTORY = 10_000  # records that an optimiser keeps at least
READ_EVERY = 200  # records that may wait to be read, each some twenty tensors of one number
ACCUMULATED = 64  # forward passes between two steps whose cases count

_Step: TypeAlias = "int | float | Tensor"


class KFAC(torch.optim.Optimizer):
    """K-FAC on your own batches: ``record = opt.step(inputs, targets)`` is one whole step.

    The step runs the model itself, once for the gradient and on some of the rows for statistics
    and curvature: there is no ``loss.backward()``, and ``p.grad`` is neither read nor written. A
    batch is taken as it comes; the rows for statistics are drawn from it by (seed, step). The
    model's mode is yours: the buffers of a module in training mode are updated once per step.

    The learning rate ``lr`` multiplies the update δ, which brings its own length; it is there for
    schedulers. The reduction ratio is that of the multiplied update.

    Args:
        model: the network; its outputs are the likelihood's parameters (logits).
        likelihood: ``"gaussian"``, ``"bernoulli"``, ``"categorical"``, … as ``Problem`` takes them:
            a Likelihood, a ``Joint`` of several, or a torch loss such as ``nn.CrossEntropyLoss()``,
            which is then h itself, weights and mean included.
        recipe: a name, a text or a Recipe; its batch slot has no say.
        l2: η of the term ½η‖θ‖² of the objective, biases included (section 6).
        seed: of the sampled targets, the choice of rows and the model's own dropout.
        lr: factor on δ.
        tf32: lets float32 products be TF32 where the device has it; they are full else.
        outputs: which of the model's outputs the likelihood is of: a name (``"logits"``), a
            number, or a function of what the model gives.

    Raises:
        RecipeError: something that cannot work; nothing was changed.
        CoverageError: parameters that no layer claims, and the recipe names no fallback.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module | Callable[..., Any] = "categorical",
        recipe: str | Recipe = "robust",
        l2: float = 0.0,  # η
        seed: int = 0,
        lr: float = 1.0,
        *,
        tf32: bool = False,
        outputs: Selector = None,
    ) -> None:
        model, _ = _bare("KFAC", model)
        _check_rate(lr)
        chosen = _recipe("KFAC", recipe)
        _check_processes("KFAC", chosen)
        problem = _problem(model, likelihood, l2, outputs)
        self._engine = _engine.attach(problem, chosen, whole_number("seed", seed), tf32=tf32)
        self.history = History()
        self._unread = 0
        self._kind: str | None = None  # of the cases of the last step
        self._open = True  # while the base class adds the one group there is
        super().__init__([p for p in model.parameters() if p.requires_grad], {"lr": lr})
        self._open = False

    # --- stepping -------------------------------------------------------------------------------

    def step(  # type: ignore[override]
        self,
        inputs: Any = None,
        targets: Any = None,
        *,
        weights: Tensor | None = None,
        closure: Any = None,
    ) -> StepRecord:
        """One step of the algorithm on a batch: ``inputs`` and ``targets`` ``[m, ...]``.

        Either may be a tuple or a dict of tensors: ``inputs`` are then the arguments, or the named
        arguments, of the model. ``weights`` ``[m]``, at least 0, multiply each case's loss; h stays
        the mean over cases.

        Returns the step's record; its numbers are 0-dim tensors until somebody reads them.

        Raises:
            RecipeError: no batch, or ``lr`` is none; nothing has changed.
            DataError: not a batch of this model and likelihood; nothing has changed.
            NumericalError: something was not finite; the step has not happened.
        """
        if closure is not None or (callable(inputs) and not isinstance(inputs, Tensor)):
            raise RecipeError(
                "KFAC.step takes a batch, opt.step(inputs, targets), not a closure: it computes "
                "loss and gradient itself"
            )
        if inputs is None or targets is None:
            raise RecipeError(
                "KFAC.step needs the batch, opt.step(inputs, targets): it computes loss and "
                "gradient itself and takes no notice of loss.backward()"
            )
        engine = self._engine
        engine.unchanged()
        _alone(self, engine)
        inputs, targets = _batch("KFAC.step", engine, inputs, targets)
        rows = len(inputs)
        targets = weighed(targets, _placed("KFAC.step", engine, "weights", weights))
        rate = self.param_groups[0]["lr"]
        _check_rate(rate)
        engine.lr = float(rate)
        order = seeds.permutation(engine.seed, "rows", engine.step_count + 1, rows)
        kind = _kind_of(inputs)
        try:
            with _own_precision(engine.device):
                engine.step_on(Drawn(inputs.detach(), targets.detach(), order))
            return self._noted(engine, kind)
        except BaseException as error:
            self._noted(engine, kind)  # an interrupt may have come right after the commit
            if not isinstance(error, RuntimeError) or self._kind in (None, kind):
                raise
            raise DataError(
                f"KFAC.step: the model does not take cases of {kind}; those before had "
                f"{self._kind}: {str(error).splitlines()[0]}"
            ) from error

    def _noted(self, engine: _engine.Engine, kind: str) -> StepRecord:
        """The record of the step just made, in the history; one that is there stays alone."""
        made = engine.record
        if made is None or self.history.step >= made.step:
            return StepRecord(engine.step_count)
        made = replace(made, lr=engine.lr)
        self._kind, self._unread = kind, self._unread + 1
        self.history.append(made)
        if made.due.inverse and self._unread >= READ_EVERY:  # a step that reads anyway
            self.history.keep(HISTORY)
            self._unread = 0
        return made

    def rebind(self) -> KFAC:
        """Goes on with the model as it is now: layers frozen, thawed, replaced, added or removed.

        What stayed keeps its moments; λ, γ, the schedule and k go on; δ0, the average and the
        inverse begin again. Returns the optimiser itself.

        Raises:
            CoverageError, RecipeError: the model cannot be taken; nothing has changed then.
        """
        self._engine.rebind()
        own = self.param_groups[0]
        own["params"] = [p for p in self.model.parameters() if p.requires_grad]
        return self

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only the constructor may: there is one group.

        Raises:
            RecipeError: always, once the optimiser exists.
        """
        if not self._open:
            raise RecipeError(
                "KFAC has one parameter group, the trained parameters of its model: to train "
                "others, set requires_grad and make another KFAC"
            )
        super().add_param_group(param_group)

    @property
    def _step_supports_amp_scaling(self) -> NoReturn:
        """What ``GradScaler.step`` asks first."""
        raise RecipeError(
            "KFAC has no use for a GradScaler: it computes the gradient itself, in the model's own "
            "precision; call opt.step(inputs, targets), or use kfac_lab.Preconditioner"
        )

    # --- looking and swapping -------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The module that is trained."""
        return self._engine.problem.model

    @property
    def recipe(self) -> Recipe:
        """Which component plays which slot now."""
        found: Recipe = self._engine.recipe
        return found

    @property
    def step_count(self) -> int:
        """k of the last step made; 0 before the first."""
        return self._engine.step_count

    def coverage(self) -> Coverage:
        """One row per parameter: layer, block, who claimed it; chain and tangents once it ran."""
        return Coverage(self._engine.coverage())

    def average(self) -> dict[str, Tensor] | None:
        """θ̄ by parameter name, for ``torch.func.functional_call``; None where there is none."""
        average = self._engine.average()
        return None if average is None else self._engine.network.named(list(average))

    def swap(self, **parts: Any) -> KFAC:
        """Puts other parts into slots from the next step on, as ``Run.swap`` does.

        λ and γ are kept unless the text names them, δ0 and the moments are kept, a new block or
        structure forces an inverse, k goes on. Returns the optimiser itself.

        Raises:
            RecipeError: what cannot be swapped; nothing has changed then.
        """
        for slot, why in (
            ("method", "another method is another optimiser"),
            ("batch", "KFAC takes the batches that you hand it"),
        ):
            if slot in parts:
                raise RecipeError(f"swap({slot}={parts[slot]!r}): {why}")
        marks = self.history.marks

        def adopt(mark: Swap) -> None:
            self.history.marks = [*marks, mark]

        carried_out(self._engine, self.recipe, planned(self.recipe, parts), adopt)
        return self

    def __repr__(self) -> str:
        rate = self.param_groups[0]["lr"]
        return f"KFAC({_described(self._engine)}, lr={float(rate):g}, step {self.step_count})"

    # --- saving ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on bit for bit: parameters and buffers, moments, λ, δ0, the recipe.

        The history is not part of it.
        """
        packed = super().state_dict()
        packed["state"] = _saved(self._engine, parameters=True)
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`, the model's parameters and buffers included.

        The recipe of the state takes the place of the one here, so that swaps are kept. On the
        same machine, torch, device type and thread count the continuation is bit-exact; a
        difference is said in a warning.

        Raises:
            CheckpointError: this is no such state, or one of another model; nothing has changed.
        """
        if not isinstance(state_dict, Mapping):
            raise CheckpointError(f"a state is what state_dict() gave, not {brief(state_dict)}")
        own = self.param_groups[0]
        groups = state_dict.get("param_groups", ())
        try:
            counts = [len(group["params"]) for group in groups]
        except (TypeError, KeyError):
            raise CheckpointError("the state has no parameter groups that there could be") from None
        if counts != [len(own["params"])]:
            raise CheckpointError(
                f"the state has groups of {counts} parameters, and this KFAC has one of "
                f"{len(own['params'])}: it belongs to another model or optimiser"
            )
        group = {**groups[0], "params": own["params"]}
        if "lr" not in group:
            raise CheckpointError("the state's parameter group has no lr")
        try:
            _check_rate(group["lr"])
        except RecipeError as error:
            raise CheckpointError(f"the state's parameter group: {error}") from None

        def adopt(engine: _engine.Engine) -> None:
            self._engine = engine
            self.param_groups = [group]
            self.history, self._unread = History(), 0

        _restored("KFAC", self._engine, state_dict.get("state"), True, adopt)

    def __getstate__(self) -> dict[str, Any]:
        raise RecipeError(
            "a KFAC is neither copied nor pickled, since it belongs to its model: save "
            "opt.state_dict() and load it into KFAC(model, …)"
        )


class Preconditioner:
    """K-FAC's inverse for a loop of your own::

        pre = Preconditioner(model, likelihood="categorical")
        for x, y in loader:
            optimizer.zero_grad()
            loss_function(model(x), y).backward()
            pre.step()            # p.grad becomes P·p.grad
            optimizer.step()

    ``step`` runs the recipe's statistics pass where the schedule says so, on the cases that the
    model has seen in training mode with gradients enabled since the last step: those of all
    forward passes under gradient accumulation (the latest 64, and of these the ones whose cases
    have the shape of the last), each of one tensor. The inputs are kept by reference until then,
    and nothing of the graph. The rows are drawn by (seed, step), targets sampled from the model.

    With an estimator whose derivatives are the loss's own (``empirical``) there is no such pass:
    the rows are taken from your own forward and backward, by hooks that are on the layers on those
    steps alone. Your loss is a mean over cases then; where it weighs them give ``targets``, and the
    pass is made with these.

    Of the recipe it uses estimator, block, structure, damping, schedule, layers and fallback.
    There is no quadratic model here, hence nothing to judge λ and γ by: they stay where ``damping``
    puts them at first. Weight decay is your optimiser's. Where the loss is a mean over cases, as
    the likelihood's, the update has the scale of a natural gradient.

    In Lightning call ``pre.step()`` in ``on_before_optimizer_step``. With a ``GradScaler`` either
    call ``scaler.unscale_(optimizer)`` before ``pre.step()``, or scale the loss yourself and give
    ``loss_scale``. One number is read from the device per step, whether the gradient is finite.

    Args:
        model: the module that your loop calls.
        likelihood: as for :class:`KFAC`; it says what the model's targets are drawn from, and how
            your loss is scaled.
        recipe: a name, a text or a Recipe.
        seed: of the sampled targets and the choice of rows.
        kl_clip: κ; the result is scaled by ν = min(1, √(κ / Σ lr²⟨U, V⟩)) with V the gradient and U
            the preconditioned one (Ba et al. 2017). None leaves it alone.
        normalise: each parameter's result is scaled to root mean square 1, so that the curvature
            gives the direction and your rate the length, as it does Adam's.
        leave: what another optimiser trains, whose gradients stay as they are: types of modules,
            paths or parameters, such as ``("Embedding", "LayerNorm", "*.bias")``. A layer of which
            only the bias is left is preconditioned whole, and the bias's gradient is kept.
        optimizer: where the clip reads each parameter's ``lr``; or give ``step(lr=…)``.
        outputs: as for :class:`KFAC`.

    Raises:
        RecipeError: something that cannot work.
        CoverageError: parameters that no layer claims, and the recipe names no fallback.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module | Callable[..., Any] = "categorical",
        recipe: str | Recipe = "small_batch",
        seed: int = 0,
        kl_clip: float | None = None,  # κ
        optimizer: torch.optim.Optimizer | None = None,
        *,
        normalise: bool = False,
        leave: Sequence[str] = (),
        outputs: Selector = None,
    ) -> None:
        model, called = _bare("Preconditioner", model)
        if isinstance(leave, str) or not all(isinstance(name, str) for name in leave):
            raise RecipeError(f"leave={leave!r} must be texts, such as ('Embedding', '*.bias')")
        if kl_clip is not None and not (isinstance(kl_clip, Real) and float(kl_clip) > 0):
            raise RecipeError(f"kl_clip={kl_clip!r} must be above 0 (κ, Ba et al. 2017), or None")
        chosen = _recipe("Preconditioner", recipe)
        _check_processes("Preconditioner", chosen)
        chosen = chosen.replace(model="none", momentum="fixed(lr=1.0, mu=0.0)", average="none")
        if not isinstance(optimizer, (torch.optim.Optimizer, type(None))):
            raise RecipeError(f"optimizer={optimizer!r} must be the torch optimiser of your loop")
        problem = _problem(model, likelihood, 0.0, outputs)
        self._engine = _engine.attach(problem, chosen, whole_number("seed", seed), leave=leave)
        self.kl_clip, self.optimizer, self.normalise = kl_clip, optimizer, bool(normalise)
        self._kept = left_out(model, leave)  # whose gradients stay, also of layers of ours
        self.history = History()
        self._leave = tuple(leave)
        self._tap = _Tap(weakref.WeakMethod(self._watching))
        handle = called.register_forward_pre_hook(self._tap, prepend=True, with_kwargs=True)
        self._off = weakref.finalize(self, handle.remove)
        self._off.atexit = False

    # --- stepping -------------------------------------------------------------------------------

    def step(
        self,
        loss_scale: float | Tensor = 1.0,
        targets: Any = None,
        *,
        lr: float | None = None,
        weights: Tensor | None = None,
        loss: float | Tensor | None = None,
    ) -> StepRecord:
        """Turns every ``p.grad`` into the preconditioned gradient, in place.

        ``loss_scale`` is what the loss was multiplied by; the gradient is divided by it first.
        ``targets`` are the labels of the cases: the estimator ``empirical`` asks for them, and a
        loss that weighs or ignores some of them has its exact scale by them (without, every
        prediction counts as the mean one does). ``weights`` are those of the cases in your loss.
        ``lr`` is for the clip, where there is no ``optimizer``. ``loss`` is what your loop's loss
        was, for the ``history``. A parameter without a gradient stays without one.

        The record has ``due``, λ, γ, and ν as ``alpha``. Where the gradient is not finite it has
        ``void`` = 1, and nothing has changed: leave out ``optimizer.step()`` too, as a
        ``GradScaler`` does.

        Raises:
            RecipeError: there is no gradient, or statistics are due and no forward pass was seen.
            NumericalError: no inverse could be built; nothing has changed.
        """
        engine, network = self._engine, self._engine.network
        engine.unchanged()
        _alone(self, engine)
        _check_place("Preconditioner.step", engine)
        if not isinstance(loss_scale, Tensor) and not (
            isinstance(loss_scale, Real) and 0 < float(loss_scale) < math.inf
        ):
            raise RecipeError(f"loss_scale={loss_scale!r} must be above 0 and finite")
        parameters = network.tensors
        gradients = [p.grad for p in parameters]
        if all(g is None for g in gradients):
            raise RecipeError("there is no gradient: call loss.backward() before pre.step()")
        rates = self._rates(parameters, lr)
        k = engine.step_count + 1
        drawn = self._tap.drawn(engine.seed, k, targets, engine.parts["estimator"], weights)
        if drawn is not None and drawn.inputs.device != engine.device:
            raise RecipeError(
                f"the model was last called with inputs on {drawn.inputs.device}, and its "
                f"parameters are on {engine.device}"
            )
        before, seen, written = engine.held, self._tap.seen(), []
        try:
            with torch.no_grad(), _own_precision(engine.device):
                full = [
                    torch.zeros_like(p) if g is None else g.detach()
                    for p, g in zip(parameters, gradients, strict=True)
                ]
                full = list(torch._foreach_div(full, loss_scale))
                largest = torch.stack(torch._foreach_norm(full, math.inf)).max()
                if not math.isfinite(linalg.host([largest])[0]):
                    self._tap.forget()
                    return StepRecord(step=k - 1, due=Due(False), void=1.0)
                rows = self._tap.rows if targets is None else None
                if rows is not None:
                    rows.scale = 1 / loss_scale
                preconditioned, record = engine.precondition(network.pack(full), drawn, rows)
                result = network.unpack(preconditioned)
                if self.normalise:
                    result = _unit(result)
                clip = self._clip(full, result, rates)
                if clip is not None:
                    factor = clip.to(result[0].dtype)
                    result = list(torch._foreach_mul(result, factor))
                pairs = [
                    (g, u)
                    for name, g, u in zip(network.names, gradients, result, strict=True)
                    if g is not None and name not in self._kept
                ]
                if isinstance(record.void, Tensor):  # on an accelerator nobody has looked yet
                    kept = record.void > 0
                    pairs = [(g, torch.where(kept, g, u)) for g, u in pairs]
                record = replace(record, alpha=torch.ones(()) if clip is None else clip)

                def commit() -> None:
                    torch._foreach_copy_([g for g, _ in pairs], [u for _, u in pairs])
                    self._tap.forget()  # the pass of our own included
                    written.append(True)

                exchange(commit)
                if loss is not None:
                    record = replace(record, loss=loss.detach() if torch.is_tensor(loss) else loss)
                self.history.append(record)
                if record.due.inverse and len(self.history) > 2 * HISTORY:
                    self.history.keep(HISTORY)
                return record
        except BaseException as error:
            if not written:  # the engine has made its step, or not: it goes back
                engine.held = before
                failed = isinstance(error, Exception) and not isinstance(error, MemoryError)
                self._tap.forget() if failed else self._tap.see(seen)
            raise

    def _watching(self) -> Seen | None:
        """Where the next step wants rows that the user's own passes have."""
        engine = self._engine
        if not engine.parts.declares("estimator").of_loss or not engine.observes_next:
            return None
        for use, block, observes in zip(
            engine.network.uses, engine.blocks, engine.parts.observing, strict=True
        ):
            if not use.modules and (observes or block.wants()):
                return None  # what no layer claims has its gradient summed over S1
        return Seen(engine.network)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Whose gradients are preconditioned; the model's others are for another optimiser."""
        named = self.model.named_parameters()
        ours = set(self._engine.network.names) - self._kept
        return [p for name, p in named if name in ours]

    @property
    def others(self) -> list[nn.Parameter]:
        """The model's trained parameters that were left to another optimiser."""
        named = self.model.named_parameters()
        return [p for name, p in named if p.requires_grad and name in self._kept]

    def _rates(self, parameters: list[Tensor], lr: float | None) -> list[_Step] | None:
        """The learning rate of each parameter, where there is a clip to need them."""
        if self.kl_clip is None:
            return None
        if lr is not None:
            return [lr] * len(parameters)
        if self.optimizer is None:
            raise RecipeError(
                "kl_clip needs the learning rate: Preconditioner(…, optimizer=optimizer) or "
                "pre.step(lr=…)"
            )
        known: dict[int, _Step] = {
            id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]
        }
        return [known.get(id(p), 0.0) for p in parameters]

    def _clip(
        self, gradients: list[Tensor], result: list[Tensor], rates: list[_Step] | None
    ) -> Tensor | None:
        """ν = min(1, √(κ / Σ lr²⟨U, V⟩)), 0-dim float64 (Ba et al. 2017)."""
        if rates is None or self.kl_clip is None:
            return None
        products = [p.sum(dtype=torch.float64) for p in torch._foreach_mul(gradients, result)]
        length = torch.stack([p * r * r for p, r in zip(products, rates, strict=True)]).sum()
        return torch.sqrt(self.kl_clip / torch.clamp(length, min=1e-300)).clamp(max=1.0)

    def remove(self) -> None:
        """Takes the hook off the model, which is an ordinary one again."""
        self._off()
        self._tap.forget()

    def rebind(self) -> Preconditioner:
        """Goes on with the model as it is now, as :meth:`KFAC.rebind`.

        Raises:
            CoverageError, RecipeError: the model cannot be taken; nothing has changed then.
        """
        self._engine.rebind()
        self._kept = left_out(self.model, self._leave)
        self._tap.forget()
        return self

    def __reduce__(self) -> Any:
        return _copied, ()

    def __getattr__(self, name: str) -> Any:
        if name == "_engine":
            raise RecipeError(
                "this Preconditioner is a copy or was unpickled, and belongs to no model: make one "
                "with Preconditioner(model, …) and load_state_dict() what state_dict() of the "
                "first gave"
            )
        raise AttributeError(f"a Preconditioner has no {name!r}")

    # --- looking --------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The module whose gradients are preconditioned."""
        return self._engine.problem.model

    @property
    def step_count(self) -> int:
        """k of the last step made; 0 before the first."""
        return self._engine.step_count

    def coverage(self) -> Coverage:
        """One row per parameter: layer, block, who claimed it, chain."""
        return Coverage(self._engine.coverage())

    def __repr__(self) -> str:
        clip = "" if self.kl_clip is None else f", kl_clip={self.kl_clip:g}"
        return f"Preconditioner({_described(self._engine)}{clip}, step {self.step_count})"

    # --- saving ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Moments, inverses, counts and the recipe; the parameters are the model's to save."""
        return _saved(self._engine, parameters=False)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`; what the model has seen since its last step is dropped.

        Raises:
            CheckpointError: this is no such state, or one of another model; nothing has changed.
        """

        def adopt(engine: _engine.Engine) -> None:
            self._engine = engine
            self._tap.forget()

        _restored("Preconditioner", self._engine, state_dict, False, adopt)


def _copied() -> Preconditioner:
    """What a copied or unpickled Preconditioner is: one without a model."""
    return Preconditioner.__new__(Preconditioner)


class _Tap:
    """A forward pre-hook that notes what the model is given: inputs, detached, by reference."""

    passive = True  # see core.plan: it changes nothing, so a pass of our own may do without it

    def __init__(self, watching: Any = None, open: bool = True) -> None:
        self._open, self._watching = open, watching
        self.rows: Seen | None = None  # of what was seen, where they are wanted
        self._seen: deque[Any] = deque(maxlen=ACCUMULATED)  # tensors or Cases
        self._odd: str | None = None

    def __reduce__(self) -> Any:
        return _Tap, (None, False)  # a copied or unpickled model has no Preconditioner

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (self._open and module.training and torch.is_grad_enabled()):
            return
        try:
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                inputs: Any = args[0]
            else:
                inputs = Cases(Call(args, dict(kwargs)))
            if not inputs.dim():
                raise DataError("inputs are one number without cases")
        except DataError as error:
            names = [*(type(a).__name__ for a in args), *(f"{name}=…" for name in kwargs)]
            self._odd = f"{type(module).__name__}({', '.join(names)}): {error}"
        else:
            if len(inputs):
                self._watch(module, inputs)
                self._seen.append(inputs.detach())

    def seen(self) -> tuple[list[Any], str | None]:
        """What :meth:`see` takes."""
        return list(self._seen), self._odd

    def see(self, seen: tuple[list[Any], str | None]) -> None:
        """Notes what was seen before, and nothing else."""
        self._seen, self._odd = deque(seen[0], maxlen=ACCUMULATED), seen[1]

    def _watch(self, module: nn.Module, inputs: Any) -> None:
        """Hooks on the layers for this one call, where its rows are wanted."""
        watching = None if self._watching is None else self._watching()
        if watching is None:
            return
        if not self._seen:
            self.rows = watching()
        elif len(self._seen) == ACCUMULATED or _kind_of(self._seen[-1]) != _kind_of(inputs):
            self.rows = None
        rows = self.rows
        if rows is None:
            return

        def after(module: nn.Module, args: Any, output: Any) -> None:
            rows.end()
            handle.remove()

        rows.begin(len(inputs))
        handle = module.register_forward_hook(after, always_call=True)

    def forget(self) -> None:
        """Lets go of all that was seen."""
        self._seen.clear()
        self._odd, self.rows = None, None

    def drawn(
        self, seed: int, step: int, targets: Any, estimator: Any, weights: Any = None
    ) -> Drawn | None:
        """The cases seen, in the order of the passes, and a permutation that says S1."""
        if self._odd is not None:
            raise RecipeError(
                "a Preconditioner follows models whose arguments are tensors of cases, and the "
                f"model was called as {self._odd}; wrap it in a module whose forward takes such"
            )
        if not self._seen:
            return None
        last = self._seen[-1]
        kind = _kind_of(last)
        inputs = concatenated([x for x in self._seen if _kind_of(x) == kind])
        rows = inputs.shape[0]
        if targets is None:
            targets = _unlabelled(type(estimator).__name__)
        elif isinstance(targets, (Tensor, Mapping, tuple)):
            targets = as_cases(targets, "targets")
        for name, given in (("targets", targets), ("weights", weights)):
            if given is None or isinstance(given, Unlabelled):
                continue
            count = len(given) if isinstance(given, (Tensor, Cases)) and given.dim() else "no"
            if count != rows:
                raise RecipeError(
                    f"{name} have {count} rows, and the model has seen {rows} cases since the "
                    "last step: give one for each, in the same order"
                )
        return Drawn(inputs, weighed(targets, weights), seeds.permutation(seed, "rows", step, rows))


def _unit(tensors: list[Tensor]) -> list[Tensor]:
    """Each scaled to root mean square 1."""
    norms = torch._foreach_norm(tensors)
    tiny = torch.finfo(norms[0].dtype).tiny
    scales = [t.numel() ** 0.5 / n.clamp(min=tiny) for t, n in zip(tensors, norms, strict=True)]
    return list(torch._foreach_mul(tensors, scales))


def _unlabelled(estimator: str) -> Unlabelled:
    def refuse() -> NoReturn:
        raise RecipeError(
            f"the estimator {estimator} asks for labels: pre.step(targets=…), or use "
            "estimator='sampled'"
        )

    return Unlabelled(refuse)


def _kind_of(inputs: Any) -> str:
    """The shape and type of a case."""
    parts = inputs.tensors if isinstance(inputs, Cases) else [inputs]
    return ", ".join(f"shape {tuple(t.shape[1:])} and {t.dtype}" for t in parts)


# --- what both faces do ---------------------------------------------------------------------------


def _recipe(who: str, source: Any) -> Recipe:
    recipe = Recipe.of(source)
    if recipe.method != "kfac":
        raise RecipeError(
            f"{who} plays the method 'kfac', and the recipe's is {recipe.method!r}: use "
            f"Run(…, recipe={recipe.method!r}), or torch's own optimiser"
        )
    return recipe


def _bare(who: str, model: Any) -> tuple[nn.Module, nn.Module]:
    """The module that is trained, and the one that the loop calls: it may be compiled, or wrapped
    by DistributedDataParallel.
    """
    called = model
    wrappers = (nn.parallel.DistributedDataParallel,)
    while isinstance(model, wrappers) or isinstance(getattr(model, "_orig_mod", None), nn.Module):
        model = model.module if isinstance(model, wrappers) else model._orig_mod
    _check_model(who, model)
    return model, called


def _check_processes(who: str, recipe: Recipe) -> None:
    """Several processes need a collective, or each goes its own way."""
    there = torch.distributed
    if not (there.is_available() and there.is_initialized() and there.get_world_size() > 1):
        return
    if traits(recipe["collective"], CollectiveTraits).size == 1:
        raise RecipeError(
            f"{who} is one of {there.get_world_size()} processes, and the recipe's collective is "
            f"{type(recipe['collective']).__name__}, so that their parameters would drift apart: "
            "recipe=Recipe.named(…).replace(collective='distributed'), of the plugin kfac-lab-ddp"
        )


#: who stepped a model last
_steppers: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[Any], int]]
_steppers = weakref.WeakKeyDictionary()


def _alone(face: Any, engine: _engine.Engine) -> None:
    """Says once that two optimisers take turns on one model."""
    model = engine.problem.model
    last = _steppers.get(model)
    other = None if last is None else last[0]()
    taken = 0 if last is None else last[1]
    if other is not None and other is not face and engine.step_count and taken < 2:
        warnings.warn(
            f"a {type(other).__name__} and a {type(face).__name__} step the same "
            f"{type(model).__name__} in turn: each has moments of its own, and does not see the "
            "other's steps; keep one, or remove() the Preconditioner",
            stacklevel=3,
        )
        taken = 2
    _steppers[model] = (weakref.ref(face), taken)


def _check_model(who: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise RecipeError(
            f"{who} takes the model itself, {who}(model, …), not its parameters: it has to see the "
            "layers"
        )
    if isinstance(model, nn.DataParallel):
        raise RecipeError(f"{who} does not go with nn.DataParallel: give it model.module")


def _problem(model: nn.Module, likelihood: Any, l2: float, outputs: Selector) -> Problem:
    """A Problem without cases: its batches come from the loop."""
    return Problem(
        model=model,
        likelihood=likelihood,
        data=_no_cases,
        l2=l2,
        outputs=outputs,
        name="own loop",
    )


def _no_cases(step: int, size: int) -> tuple[Tensor, Tensor]:
    raise RecipeError("the batches come from your own loop")


def _own_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """No autocast inside: statistics and inverses are made in the model's precision."""
    if device.type not in ("cpu", "cuda"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _check_rate(lr: Any) -> None:
    number = isinstance(lr, (Real, Tensor))
    if not number or not 0 <= float(lr) < math.inf:
        shown = f"{float(lr):g}" if number else repr(lr)
        raise RecipeError(f"lr={shown} must be at least 0 and finite: it multiplies the update")


def _check_place(who: str, engine: _engine.Engine) -> torch.device:
    here = engine.network.tensors[0].device
    if here != engine.device:
        name = who.partition(".")[0]
        raise RecipeError(
            f"the model was moved from {engine.device} to {here} after {name} was made: move it "
            f"first, then make the {name}"
        )
    return here


def _placed(who: str, engine: _engine.Engine, name: str, value: Any) -> Any:
    """The value, every tensor of which is on the model's device."""
    here = engine.device
    for tensor in tensors_of(value.tree if isinstance(value, Cases) else value):
        if tensor.device != here:
            raise RecipeError(
                f"{who}: {name} are on {tensor.device} and the model is on {here}: move them there"
            )
    return value


def _batch(who: str, engine: _engine.Engine, inputs: Any, targets: Any) -> tuple[Any, Any]:
    """A batch: inputs and targets, each a tensor or Cases.

    Raises:
        RecipeError: they are not tensors of the same cases on the model's device.
        DataError: a tuple or dict whose tensors have not the same cases.
    """
    _check_place(who, engine)
    found = []
    for name, value in (("inputs", inputs), ("targets", targets)):
        try:
            cases = as_cases(value, name)
        except DataError as error:
            if isinstance(value, (Mapping, tuple, list)):
                raise
            raise RecipeError(
                f"{who} takes tensors, and {name} is a {type(value).__name__}"
            ) from error
        if cases.dim() == 0:
            raise RecipeError(f"{who} takes a batch, and {name} is one number without cases")
        found.append(_placed(who, engine, name, cases))
    rows = len(found[0])
    if len(found[1]) != rows:
        raise RecipeError(
            f"{who} takes cases one for one: {rows} inputs came with {len(found[1])} targets"
        )
    if rows == 0:
        raise RecipeError(f"{who} needs at least one case, and the batch is empty")
    return found[0], found[1]


def _described(engine: _engine.Engine) -> str:
    count = sum(p.numel() for p in engine.network.tensors)
    layers = len(engine.network.uses)
    kind = type(engine.problem.model).__name__
    return f"{kind} of {layers} layers and {count} parameters, {engine.problem.likelihood!r}"


def _text(recipe: Recipe) -> str | None:
    try:
        return recipe.text(complete=True)
    except KfacLabError:
        return None  # a component of nobody's class: whoever loads has to bring it


def _saved(engine: _engine.Engine, parameters: bool) -> dict[str, Any]:
    saved = {
        "kfac_lab": FORMAT,
        "recipe": _text(engine.recipe),
        "where": where(engine.device),
        "engine": engine.state(parameters=parameters),
    }
    return {**saved, "seal": _seal(saved)}


def _restored(
    who: str,
    engine: _engine.Engine,
    saved: Any,
    parameters: bool,
    adopt: Callable[[_engine.Engine], None],
) -> None:
    """Takes over a saved state: into the same engine, or into another where the recipe differs.

    ``adopt`` is what its owner notes with it, by assignments: both happen, or neither.
    """
    none = f"this is no state that a {who} of this version has saved"
    if not isinstance(saved, Mapping) or saved.get("kfac_lab") not in range(1, FORMAT + 1):
        raise CheckpointError(none)
    saved = dict(saved)
    stated = saved.pop("seal", None)
    check(saved, _SAVED, "the state")
    if saved["kfac_lab"] > 1 and stated != _seal(saved):
        raise CheckpointError("the state is damaged: it is not what was saved; load an older copy")
    target, text = engine, saved["recipe"]
    try:
        if text is not None and text != _text(engine.recipe):
            target = _engine.attach(
                engine.problem,
                Recipe.from_text(text),
                engine.seed,
                tf32=engine.tf32,
                leave=engine.leave,
            )

        def commit() -> None:
            target.load(saved["engine"], parameters=parameters)
            adopt(target)

        exchange(commit)
    except (CheckpointError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(f"the state does not fit this model: {reason}") from error
    warn_elsewhere("state", saved["where"], target.device)


def _seal(saved: Mapping[str, Any]) -> str:
    """Of the recipe and of the engine's state: by it a state that was changed is known."""
    return archive.seal([saved["recipe"], saved["engine"]])


_SAVED = record(
    {
        "kfac_lab": whole(1, FORMAT),
        "recipe": maybe(text()),
        "where": WHERE,
        "engine": table(anything),
    }
)
