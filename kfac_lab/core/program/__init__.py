"""Programs: a step recorded once as a list of ATen calls, and replayed.

- ``stepwise.py``: what a part uses whose numbers depend on k, so that a program asks for them anew.
- ``supplied.py``: Python numbers that a call takes as such and a replay is given anew.
- ``watched_number.py``: what both kinds of numbers owe: to tell when Python uses them.
- ``calls.py``: what a recording is made of.
- ``recorder.py``: notes every ATen call of a step while it is made as ever, and what of it would
  not come out right in a replay: a read, a draw, a Python number of k, a write into what is kept.
- ``repeated.py``: any function of tensors, recorded and replayed: a baseline's gradient and update;
  ``chained.py``: both as one.
- ``sizes.py``: two recordings at different sizes as one program for all.
- ``program.py``: the calls as a function of their inputs, run one by one.
- ``captured.py``: the same as one launch with fixed places, on CUDA a CUDA graph;
  ``scalars.py``: with 0-dim tensors for numbers that change from step to step.
- ``extents.py``: which sides of which tensors go with a size.
- ``padded.py``: a program at larger sizes, whose rows beyond the batch count for nothing.
- ``padded_launch.py``: one launch of it for every size up to its own.

What a step's inputs are, and when a program serves, is the engine's (``engine/programs.py``).
"""

from kfac_lab.core.program.calls import Recording, TensorSlot, identical
from kfac_lab.core.program.captured import Capture, Captured, CudaGraphs
from kfac_lab.core.program.program import Program
from kfac_lab.core.program.recorder import ProgramRecorder
from kfac_lab.core.program.repeated import Known, Repeated
from kfac_lab.core.program.stepwise import (
    branch,
    counted,
    counting,
    expected,
    filled,
    numbers,
    supplied,
    unusual,
    watched,
)
from kfac_lab.core.program.supplied import called, takes_numbers

__all__ = [
    "Capture",
    "Captured",
    "CudaGraphs",
    "Known",
    "Program",
    "ProgramRecorder",
    "Recording",
    "Repeated",
    "TensorSlot",
    "branch",
    "called",
    "counted",
    "counting",
    "expected",
    "filled",
    "identical",
    "numbers",
    "supplied",
    "takes_numbers",
    "unusual",
    "watched",
]
