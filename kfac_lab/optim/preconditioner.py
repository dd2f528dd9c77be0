"""Preconditioner: P∇h for a loop, a loss and an optimiser of one's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab import engine as _engine
from kfac_lab.core.autocast import own_precision
from kfac_lab.core.capture import left_out
from kfac_lab.core.exchange import exchange
from kfac_lab.core.likelihood import Likelihood, Selector
from kfac_lab.core.parameters import whole_number
from kfac_lab.core.passes import WatchedPasses
from kfac_lab.core.precision import Precision
from kfac_lab.core.state import Due, StepRecord, Swap
from kfac_lab.errors import RecipeError
from kfac_lab.history import History
from kfac_lab.hooks import Recipe
from kfac_lab.optim import checks, directions, lengths, states
from kfac_lab.optim.kfac import HISTORY, READ_EVERY
from kfac_lab.optim.tap import Tap, watched
from kfac_lab.run import Coverage, carried_out, planned, told

__all__ = ["Preconditioner"]

SWAPS = ("estimator", "block", "structure", "damping", "schedule", "fallback")


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
    or a ``swap`` that names them puts them. Weight decay is your optimiser's. Where the loss is a
    mean over cases, as the likelihood's, the update has the scale of a natural gradient.

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
            the preconditioned one (Ba et al. 2017); None: no clip. It knows of no momentum: before
            SGD with μ = 0.9, κ is what 100 κ is without. Where h stays put, lower κ.
        normalise: ``True`` or ``"rms"``: each parameter's result is scaled to root mean square 1,
            so that the curvature gives the direction and your rate the length, as it does Adam's.
            With SGD as in ``SGD(pre.parameters, (1 - mu) * lr, momentum=mu, nesterov=True)`` lr is
            the rate of a mean over the past; torch starts one with ``dampening`` 1/(1−μ) times too
            long. ``"spectral"``: before that, each layer's U = PV becomes U (VᵀU)^(-1/2), the
            steepest direction in the spectral norm of the curvature, as Muon's is without one
            (``core/polar.py``); P has to be a product of two factors. Give ``momentum`` here then,
            and none to your optimiser, ``SGD(pre.parameters, lr)``: a mean of directions is none.
        momentum: μ of Nesterov's mean of the gradients, V ← (1−μ)∇h + μm with m ← μm + (1−μ)∇h,
            which is preconditioned in the gradient's place; kept in ``state_dict``.
        leave: what another optimiser trains, whose gradients stay as they are: types of modules,
            paths or parameters, such as ``("Embedding", "LayerNorm", "*.bias")``. A layer of which
            only the bias is left is preconditioned whole, and the bias's gradient is kept.
        optimizer: where the clip reads each parameter's ``lr``; or give ``step(lr=…)``.
        graphs, outputs: as for :class:`KFAC`.
        precision: of the statistics; ``gradient`` is of a pass of ours, where yours has no rows.

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
        normalise: bool | str = False,
        momentum: float = 0.0,  # μ
        leave: Sequence[str] = (),
        graphs: bool | str = "auto",
        precision: Precision | Mapping[str, str] | str | None = None,
        outputs: Selector = None,
    ) -> None:
        model, called = checks.bare("Preconditioner", model)
        checks.check_leave(leave)
        lengths.check_clip(kl_clip)
        directions.check(normalise, momentum)
        chosen = checks.recipe_of("Preconditioner", recipe)
        checks.check_processes("Preconditioner", chosen)
        chosen = chosen.replace(
            quadratic_model="none", momentum="fixed(lr=1.0, mu=0.0)", average="none"
        )
        if not isinstance(optimizer, (torch.optim.Optimizer, type(None))):
            raise RecipeError(f"optimizer={optimizer!r} must be the torch optimiser of your loop")
        problem = checks.problem_of(model, likelihood, 0.0, outputs)
        options = {"leave": leave, "graphs": graphs, "precision": precision}
        self._engine = _engine.attach(problem, chosen, whole_number("seed", seed), **options)
        self.kl_clip, self.optimizer, self.normalise = kl_clip, optimizer, normalise
        self.momentum, self._mean = float(momentum), directions.Mean()
        self._kept = left_out(model, leave)  # whose gradients stay, also of layers of ours
        self.history = History()
        self._unread = 0
        self._leave = tuple(leave)
        self._tap = Tap(weakref.WeakMethod(self._watching))
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
        weights: Tensor | Mapping[str, Tensor] | None = None,
        loss: float | Tensor | None = None,
    ) -> StepRecord:
        """Turns every ``p.grad`` into the preconditioned gradient, in place.

        ``loss_scale`` is what the loss was multiplied by; the gradient is divided by it first.
        ``targets`` are the labels of the cases: the estimator ``empirical`` asks for them, and a
        loss that weighs or ignores some of them has its exact scale by them (without, every
        prediction counts as the mean one does). ``weights`` are those of the cases in your loss,
        or a dict of them by the heads of a ``Joint``.
        ``lr`` is for the clip, where there is no ``optimizer``. ``loss`` is what your loop's loss
        was, for the ``history``. A parameter without a gradient stays without one.

        The record has ``due``, λ, γ, and ν as ``alpha``. Where the gradient is not finite it has
        ``skipped`` = 1, and nothing has changed: leave out ``optimizer.step()`` too, as a
        ``GradScaler`` does.

        Raises:
            RecipeError: there is no gradient, or statistics are due and no forward pass was seen.
            NumericalError: no inverse could be built; nothing has changed.
        """
        engine, network = self._engine, self._engine.network
        engine.unchanged()
        checks.alone(self, engine)
        checks.check_place("Preconditioner.step", engine)
        lengths.check_scale(loss_scale)
        parameters = network.tensors
        gradients = [p.grad for p in parameters]
        if all(g is None for g in gradients):
            raise RecipeError("there is no gradient: call loss.backward() before pre.step()")
        rates = lengths.rates(self.kl_clip, parameters, lr, self.optimizer)
        k = engine.step_count + 1
        drawn = self._tap.drawn(
            engine.seed,
            k,
            targets,
            engine.parts["estimator"],
            weights,
            likelihood=engine.problem.likelihood,
            ordered=engine.store is None or engine.observes_next,
        )
        if drawn is not None and drawn.inputs.device != engine.device:
            raise RecipeError(
                f"the model was last called with inputs on {drawn.inputs.device}, and its "
                f"parameters are on {engine.device}"
            )
        if drawn is not None and engine.store is None:
            # Layers whose rows do not see every use of them go to the fallback now.
            with self._tap.resting():
                engine.bind(drawn.inputs, drawn.targets)
            network = engine.network
            parameters = network.tensors
            gradients = [p.grad for p in parameters]
            rates = lengths.rates(self.kl_clip, parameters, lr, self.optimizer)
        with torch.no_grad(), own_precision(engine.device):
            full = [
                torch.zeros_like(p) if g is None else g.detach()
                for p, g in zip(parameters, gradients, strict=True)
            ]
            if isinstance(loss_scale, Tensor) or loss_scale != 1:
                full = list(torch._foreach_div(full, loss_scale))
            finite = lengths.finite(engine, full)
        with self._tap.repeatable():
            engine.tell(loop=True)  # what came to light with it, of the steps before
        before, seen, written = engine.held, self._tap.seen(), []
        try:
            with torch.no_grad(), own_precision(engine.device):
                if not finite:
                    self._tap.forget()
                    return StepRecord(step=k - 1, due=Due(False), skipped=1.0)
                rows = self._tap.rows if targets is None else None
                if rows is not None:
                    rows.scale = 1 / loss_scale
                with self._tap.resting():
                    mean, ahead = self._mean.moved(self.momentum, network.names, full)
                    vector = network.pack(ahead)
                    preconditioned, record = engine.precondition(vector, drawn, rows)
                result = directions.of(
                    self.normalise, engine, vector, preconditioned, record.due.inverse
                )
                clip = lengths.clip_of(self.kl_clip, network.names, self._kept, full, result, rates)
                if clip is not None:
                    result = list(torch._foreach_mul(result, clip.to(result[0].dtype)))
                pairs = [
                    (g, u)
                    for name, g, u in zip(network.names, gradients, result, strict=True)
                    if g is not None and name not in self._kept
                ]
                if isinstance(record.skipped, Tensor):  # on an accelerator nobody has looked yet
                    pairs = [(g, torch.where(record.skipped > 0, g, u)) for g, u in pairs]
                record = replace(record, alpha=torch.ones(()) if clip is None else clip)

                def commit() -> None:
                    torch._foreach_copy_([g for g, _ in pairs], [u for _, u in pairs])
                    self._mean = mean.unless(record.skipped, self._mean)
                    self._tap.forget()  # the pass of our own included
                    written.append(True)

                exchange(commit)
                if loss is not None:
                    record = replace(record, loss=loss.detach() if torch.is_tensor(loss) else loss)
                self.history.append(record)
                self._unread += 1
                if record.due.inverse and self._unread >= READ_EVERY:  # a step that reads anyway
                    self.history.keep(HISTORY)
                    self._unread = 0
                return record
        except BaseException as error:
            if not written:  # the engine has made its step, or not: it goes back
                engine.held = before
                failed = isinstance(error, Exception) and not isinstance(error, MemoryError)
                self._tap.forget() if failed else self._tap.see(seen)
            raise

    def _watching(self) -> WatchedPasses | None:
        """Where the next step wants rows that the user's own passes have."""
        return watched(self._engine)

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

    # --- swapping -------------------------------------------------------------------------------

    swaps = SWAPS

    @property
    def recipe(self) -> Recipe:
        """Which component plays which slot now."""
        found: Recipe = self._engine.recipe
        return found

    def swap(self, **parts: Any) -> Preconditioner:
        """Puts other parts into slots from the next step on, as ``Run.swap`` does.

        λ and γ are kept unless the text names them, the moments are kept, a new block or structure
        forces an inverse, k goes on. Returns the Preconditioner itself.

        Raises:
            RecipeError: what cannot be swapped; nothing has changed then.
        """
        for slot in parts:
            if slot not in SWAPS and slot != "layers":
                raise RecipeError(
                    f"swap({slot}={parts[slot]!r}): a Preconditioner uses {', '.join(SWAPS)} of a "
                    "recipe"
                )
        plan, marks = planned(self.recipe, parts), self.history.marks
        takes = self._engine.check(plan.recipe).declares("estimator").of_loss
        anew = {"estimator", "schedule"} & set(parts)
        if takes and anew and self._tap.rows is None and self._tap.seen()[0]:
            raise RecipeError(
                f"swap({', '.join(anew)}): the estimator {plan.recipe.text_of('estimator')} takes "
                "its rows from your forward pass, which has been made: swap right after pre.step()"
            )

        def adopt(mark: Swap) -> None:
            self.history.marks = [*marks, mark]
            if "estimator" in parts:
                self._tap.rows = None  # they were the other estimator's

        carried_out(self._engine, self.recipe, plan, adopt)
        return self

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
        return Coverage(self._engine.coverage()).with_note(told(self._engine))

    def __repr__(self) -> str:
        clip = "" if self.kl_clip is None else f", kl_clip={self.kl_clip:g}"
        return f"Preconditioner({checks.described(self._engine)}{clip}, step {self.step_count})"

    # --- saving ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Moments, inverses, counts, recipe, mean of gradients; the parameters are the model's."""
        return states.saved(self._engine, parameters=False, mean=self._mean.gradients)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`; what the model has seen since its last step is dropped.

        Raises:
            CheckpointError: this is no such state, or one of another model; nothing has changed.
        """

        def adopt(engine: _engine.Engine) -> None:
            self._engine, self._mean = engine, directions.Mean.saved(state_dict, engine)
            self._tap.forget()

        states.restored("Preconditioner", self._engine, state_dict, False, adopt)


def _copied() -> Preconditioner:
    """What a copied or unpickled Preconditioner is: one without a model."""
    return Preconditioner.__new__(Preconditioner)
