"""How parts get in: the hooks, the plugin manager and its registry, recipes."""

from kfac_lab.core import likelihood as _likelihood
from kfac_lab.hooks.manager import Lab, Plugin, PluginWarning, lab
from kfac_lab.hooks.recipe import Recipe, Rules
from kfac_lab.hooks.registry import FAMILIES, SLOTS, Entry, Registry
from kfac_lab.hooks.specs import hookimpl

__all__ = [
    "FAMILIES",
    "SLOTS",
    "Entry",
    "Lab",
    "Plugin",
    "PluginWarning",
    "Recipe",
    "Registry",
    "Rules",
    "hookimpl",
    "lab",
]

_likelihood.claimants.append(lab.claim_likelihood)
