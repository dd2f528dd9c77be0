"""The engine: one K-FAC step as nine verbs, and what happens between two steps.

    step        the step itself, beside Algorithm 2: read this first
    engine      a network, parts and a State, and what can be done with them
    held        all that is held between steps, one value
    opening     the State before the first step
    parts       who plays which slot, checked against the network
    boundary    what is due, drift, reads, warnings
    statistics  observe: moments and the blocks' part_states
    proposal    propose, model, choose: a candidate of a strength and its inverse
    search      invert, and which candidate: the ladder, retries
    candidate   what is tried, and what was chosen
    building    a refresh that is spread over steps
    programs    a step recorded once and replayed: which program serves it
    sized       the programs that serve batches of every size
    asked       what such a step is asked with, and its key
    known       what is known of steps with a key: how often they came, their program
    prepared    such a step before its commit
    guard       a step after which h explodes is taken back
    commit      move: one exchange of what is held
    finite      whether a step's numbers are finite, and what is said
    swap        other parts at a step boundary
    rebind      the model as it is now, the moments of what stayed
    record      what a step saw
    coverage    what becomes of each parameter

It imports the vocabulary of ``core`` and nothing of plugins, recipes or runs.
"""

from kfac_lab.engine.engine import Engine, attach
from kfac_lab.engine.parts import SLOTS

__all__ = ["SLOTS", "Engine", "attach"]
