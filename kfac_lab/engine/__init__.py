"""The engine: one K-FAC step as nine verbs, and what happens between two steps.

    step        the step itself, beside Algorithm 2: read this first
    engine      what is held between steps, and what can be done with it
    parts       who plays which slot, checked against the network
    boundary    what is due, drift, reads, warnings
    statistics  observe: moments and the blocks' part_states
    proposal    invert, propose, model, choose: candidates, the ladder, retries
    programs    a step recorded once and replayed
    commit      move, average: one exchange of what is held
    swap        other parts at a step boundary
    record      what a step saw
    coverage    what becomes of each parameter

It imports the vocabulary of ``core`` and nothing of plugins, recipes or runs.
"""

from kfac_lab.engine.engine import Engine, attach
from kfac_lab.engine.parts import SLOTS

__all__ = ["SLOTS", "Engine", "attach"]
