"""The engine: one K-FAC step as nine verbs, and what happens between two steps.

    step        the step itself, beside Algorithm 2: read this first
    parts       who plays which slot, checked against the network
    boundary    what is due, drift, reads, warnings
    statistics  observe: moments and the blocks' memos
    proposal    invert, propose, model, choose: candidates, the ladder, retries
    commit      move, average: one exchange of what is held
    swap        other parts at a step boundary
    coverage    what becomes of each parameter

It imports the vocabulary of ``core`` and nothing of plugins, recipes or runs.
"""

from kfac_lab.engine.parts import SLOTS
from kfac_lab.engine.step import Engine, attach

__all__ = ["SLOTS", "Engine", "attach"]
