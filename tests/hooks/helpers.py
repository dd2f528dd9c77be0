"""What tests of the loader ask of a lab."""

import warnings

from hooks.parts import TOYS
from kfac_lab.hooks import Lab, PluginWarning

CONSTANT = TOYS["damping", "constant"]


def status(lab: Lab) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return {plugin.name: plugin.status for plugin in lab.plugins()}


def why(lab: Lab, name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        lab.load()
    return lab.plugin(name).why
