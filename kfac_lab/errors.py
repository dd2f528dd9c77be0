"""What can go wrong, by name.

Every error that `kfac_lab` raises on purpose is a `KfacLabError`, so one `except` catches them all;
the subclass says whose move it is: the recipe's author, the plugin's, the model's, the numbers'.
"""

__all__ = [
    "CheckpointError",
    "CoverageError",
    "DataError",
    "KfacLabError",
    "NumericalError",
    "PluginError",
    "RecipeError",
]


class KfacLabError(Exception):
    """The root of every error raised on purpose here; catch it to catch them all."""


class RecipeError(KfacLabError):
    """A recipe cannot be read or cannot be run.

    Raised where the recipe is typed: an unknown slot or component, a value outside its bounds,
    parts that contradict each other, a slot that the recipe's method does not use. Also for any
    other argument that is none. The run is unchanged.
    """


class PluginError(KfacLabError):
    """A plugin broke the rules of the house.

    Raised when two plugins claim one name or one module, when a hook is misspelt or asks for what
    it cannot get, and, under `KFAC_LAB_STRICT=1`, when a plugin fails to load at all.
    """


class CoverageError(KfacLabError):
    """A parameter would have been skipped silently.

    Raised at attach for parameters that no layer claims while the recipe names no fallback (one
    error lists them all, with the remedy), and after the first pass for a claimed layer that
    recorded nothing.
    """


class NumericalError(KfacLabError):
    """The numbers broke down and every milder remedy was tried.

    Raised when the objective, the slope, the coefficients or the increments are not finite, or when
    a factor could not be inverted after jitter and float64. The step has not happened.

    On an accelerator such a step is found out later: it has changed nothing but the step count, and
    the next step raises this before it does anything. ``skipped`` then has the steps it was.
    """

    skipped: tuple[int, ...] = ()


class CheckpointError(KfacLabError):
    """A saved run cannot be written, cannot be loaded, or does not fit what it is loaded into.

    Raised for a file that cannot be written, and for one that is damaged, of an unknown version,
    or of another model, recipe or set of plugins than the one at hand.
    """


class DataError(KfacLabError):
    """A problem's data are not there, or are not what they should be.

    Raised when real data can be found neither in `KFAC_LAB_DATA` nor by a fetcher, when a checksum
    does not match, and when the shapes of inputs, targets and model disagree.
    """
