"""``replays``: a step with the component comes out right when a program replays it.

A program has what Python decided and computed while it was recorded. So a part asks for what
depends on k by ``core.program.numbers`` and ``branch``, keeps counts as tensors, draws by what it
is handed, and reads nothing on a step without a refresh.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from kfac_lab.engine import Engine
from kfac_lab.engine.parts import SLOTS
from kfac_lab.engine.programs import Programs
from kfac_lab.testing.law import Broken, Case, law

__all__ = ["ONE_GAMMA", "WENT_ON", "Attached", "replaying_law"]

#: makes the engine of a case with a component, and other parts by their slots
Attached = Callable[..., Engine]
#: parts with which a refresh tries one γ, which λ moves: by which of several is the best a step
#: would decide otherwise each time, and not be replayed
ONE_GAMMA = {"damping": "tied(lam=1.0)"}
#: where ``resumes`` leaves the engine that went on, call by call
WENT_ON = "went on"

#: every kind of step of the laws' schedule is seen, recorded twice, compared, and replayed
STEPS = 11
#: what these decide is decided before a program runs
BEFORE = ("batch", "collective", "schedule")
_FIRST = (
    "instances_share_nothing",
    "global_state_kept",
    "no_host_read",
    "trains",
    "resumes",
    "round_trip",
)
#: what may make a step be made call by call without any fault of a part's
_FAIR = ("what the step reads comes out otherwise", "which number of")


def replaying_law(slot: str, attached: Attached, needs: tuple[str, ...]) -> None:
    """Makes the law of this file for a slot whose part has a share in what a program holds."""

    if slot not in SLOTS or slot in BEFORE:
        return

    @law(
        slot,
        "A step that is replayed from its recording is the step: no Python number of k or of a "
        "moment's weight, no Python count in its state, no draw of its own, no read but on a "
        "refresh.",
        needs=(*needs, *_FIRST),
    )
    def replays(case: Case) -> None:
        eager = case.memo.pop(WENT_ON, None) or attached(case, case.make(), **ONE_GAMMA)
        engine = attached(case, case.make(), **ONE_GAMMA)
        eager.programs = Programs(False, eager.device)
        engine.programs = Programs(True, engine.device, patience=3)
        where = f"{STEPS} steps, recorded and replayed"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for stepper in (eager, engine):
                while stepper.state_.step < STEPS:
                    stepper.step()
        for due, reason in engine.programs.refusals.items():
            refresh = "inverse" in due and " reads a" in reason
            if not refresh and not reason.startswith(_FAIR):
                raise Broken(f"{where}, {due} due", "a step that a program can replay", reason)
        theirs, mine = (dict(e.problem.model.state_dict()) for e in (eager, engine))
        for name, value in theirs.items():
            if not bool((value == mine[name]).all()):
                gap = float((value - mine[name]).abs().max())
                raise Broken(where, "θ as call by call, bit for bit", f"{gap:.3g} off in {name}")
