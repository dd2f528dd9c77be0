"""The laws of a plugin: the module (or object) that an entry point names.

``runs`` (it can be imported), ``imports_quickly``, ``interface_fits``, ``hooks_marked``,
``hooks_known``, ``hooks_plain``, ``hook_arguments``, ``loads``, ``brings_something``,
``names_of_its_own``, ``examples_run``, ``claims_answer``, ``claims_by_exact_type``,
``claims_are_called``, ``gradient_from_calls``, ``packs_of_calls``, ``claimed_modules_train``.

Where the loader would refuse the plugin, the law quotes its sentence. The components that the
plugin registers, the layers and the likelihoods that it claims have laws of their own:
``kfac_lab.testing.check_plugin`` tries them all.
"""

from __future__ import annotations

from kfac_lab.testing.laws.plugin_claims import (
    claimed,
    claimed_modules_train,
    claims_answer,
    claims_are_called,
    claims_by_exact_type,
    examples,
    examples_run,
    gradient_from_calls,
    packs_of_calls,
    plain,
)
from kfac_lab.testing.laws.plugin_loading import (
    EXAMPLES,
    SLOT,
    Loaded,
    brings_something,
    hook_arguments,
    hooks_known,
    hooks_marked,
    hooks_plain,
    imports_quickly,
    interface_fits,
    loaded,
    loads,
    names_of_its_own,
    runs,
)

__all__ = [
    "EXAMPLES",
    "SLOT",
    "Loaded",
    "brings_something",
    "claimed",
    "claimed_modules_train",
    "claims_answer",
    "claims_are_called",
    "claims_by_exact_type",
    "examples",
    "examples_run",
    "gradient_from_calls",
    "hook_arguments",
    "hooks_known",
    "hooks_marked",
    "hooks_plain",
    "imports_quickly",
    "interface_fits",
    "loaded",
    "loads",
    "names_of_its_own",
    "packs_of_calls",
    "plain",
    "runs",
]
