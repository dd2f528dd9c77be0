"""KFAC: the whole algorithm on the batches that you hand over."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from kfac_lab import engine as _engine
from kfac_lab.core import seeds
from kfac_lab.core.autocast import own_precision
from kfac_lab.core.likelihood import Likelihood, Selector
from kfac_lab.core.literal import brief
from kfac_lab.core.parameters import whole_number
from kfac_lab.core.precision import Precision
from kfac_lab.core.problem import Drawn, weighed
from kfac_lab.core.state import StepRecord, Swap
from kfac_lab.errors import CheckpointError, DataError, RecipeError
from kfac_lab.history import History
from kfac_lab.hooks import Recipe
from kfac_lab.hooks.registry import SLOTS
from kfac_lab.optim import checks, states
from kfac_lab.optim.noise import LOOKS, fits_noise
from kfac_lab.optim.tap import kind_of
from kfac_lab.run import Coverage, carried_out, planned, told

__all__ = ["KFAC"]

HISTORY = 10_000  # records that an optimiser keeps at least
READ_EVERY = 200  # records that may wait to be read, each some twenty tensors of one number


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
        precision: how short products of statistics, tangents and gradient may be, as in
            ``"statistics=bfloat16, tangents=tf32"``; all float32 else.
        graphs: whether steps are recorded as programs and replayed (``engine/programs.py``), which
            changes no number: True, False, or ``"auto"``, which is True on CUDA.
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
        graphs: bool | str = "auto",
        precision: Precision | Mapping[str, str] | str | None = None,
        outputs: Selector = None,
    ) -> None:
        model, _ = checks.bare("KFAC", model)
        checks.check_rate(lr)
        self._known_rate: tuple[Tensor, int, float] | None = None
        chosen = checks.recipe_of("KFAC", recipe)
        checks.check_processes("KFAC", chosen)
        problem = checks.problem_of(model, likelihood, l2, outputs)
        self._engine = _engine.attach(
            problem,
            chosen,
            whole_number("seed", seed),
            tf32=tf32,
            graphs=graphs,
            precision=Precision.of(precision),
        )
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
        weights: Tensor | Mapping[str, Tensor] | None = None,
        closure: Any = None,
    ) -> StepRecord:
        """One step of the algorithm on a batch: ``inputs`` and ``targets`` ``[m, ...]``.

        Either may be a tuple or a dict of tensors: ``inputs`` are then the arguments, or the named
        arguments, of the model. ``weights`` ``[m]``, at least 0, multiply each case's loss; h stays
        the mean over cases. For a ``Joint`` they may be a dict of such, by head.

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
        checks.alone(self, engine)
        inputs, targets = checks.batch_of("KFAC.step", engine, inputs, targets)
        rows = len(inputs)
        weights = checks.placed("KFAC.step", engine, "weights", weights)
        targets = weighed(targets, weights, engine.problem.likelihood)
        engine.lr = self._rate()
        order = seeds.permutation(engine.seed, "rows", engine.step_count + 1, rows)
        kind = kind_of(inputs)
        try:
            with own_precision(engine.device):
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

    def _rate(self) -> float:
        """``lr`` as a number; a tensor on an accelerator is read where it was written since."""
        lr = self.param_groups[0]["lr"]
        free = self._engine._reads_are_free
        if free or not isinstance(lr, Tensor) or lr.is_inference():
            return checks.check_rate(lr)
        last = self._known_rate
        if last is None or last[0] is not lr or last[1] != lr._version:
            last = self._known_rate = lr, lr._version, checks.check_rate(lr)
        return last[2]

    def _noted(self, engine: _engine.Engine, kind: str) -> StepRecord:
        """The record of the step just made, in the history; one that is there stays alone."""
        made = engine.record
        if made is None or self.history.step >= made.step:
            return StepRecord(engine.step_count)
        made = replace(made, lr=engine.lr)
        self._kind, self._unread = kind, self._unread + 1
        self.history.append(made)
        if made.step == LOOKS and engine.parts.needs_rho:
            text = fits_noise(self.history, made.batch)
            if text is not None:
                warnings.warn(text, stacklevel=3)
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
        return Coverage(self._engine.coverage()).with_note(told(self._engine))

    def average(self) -> dict[str, Tensor] | None:
        """θ̄ by parameter name, for ``torch.func.functional_call``; None where there is none."""
        average = self._engine.average()
        return None if average is None else self._engine.network.named(list(average))

    #: the slots that ``swap`` takes: the batches are the loop's
    swaps = (*(slot for slot in SLOTS if slot not in ("method", "batch")), "fallback")

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
        return f"KFAC({checks.described(self._engine)}, lr={float(rate):g}, step {self.step_count})"

    # --- saving ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on bit for bit: parameters and buffers, moments, λ, δ0, the recipe.

        The history is not part of it.
        """
        packed = super().state_dict()
        packed["state"] = states.saved(self._engine, parameters=True)
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
            checks.check_rate(group["lr"])
        except RecipeError as error:
            raise CheckpointError(f"the state's parameter group: {error}") from None

        def adopt(engine: _engine.Engine) -> None:
            self._engine = engine
            self.param_groups = [group]
            self.history, self._unread = History(), 0

        states.restored("KFAC", self._engine, state_dict.get("state"), True, adopt)

    def __getstate__(self) -> dict[str, Any]:
        raise RecipeError(
            "a KFAC is neither copied nor pickled, since it belongs to its model: save "
            "opt.state_dict() and load it into KFAC(model, …)"
        )
