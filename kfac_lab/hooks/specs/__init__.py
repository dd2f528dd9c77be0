"""The hooks: everything by which a part gets into the lab. Three families, told by the prefix.

* **contribute**: ``kfac_register_…(register)`` is called once per plugin when it is loaded;
  ``register(name, component, summary="…", reference="…")`` puts a class into a slot.
* **claim**: ``kfac_claim_layer`` and ``kfac_claim_likelihood`` are asked at attach, each plugin on
  its own. Answer None for what is not yours, and go by exact type.
* **observe**: ``kfac_on_…`` fire on the training thread; they read and change nothing.

A plugin is a module (or an object) whose functions carry ``@kl.hookimpl``, named by an entry point
in the group ``kfac_lab``; an implementation takes those of the hook's arguments that it names.

Two more attributes are looked at, neither of them a hook and both optional. ``kfac_lab_api = 1``
says for which interface the plugin was written. ``kfac_lab_examples()`` yields pairs (module,
inputs) for ``kfac-lab check``, beside torch's own modules: a module that the plugin claims, in
float32, and the tensor, or tuple of tensors, that it is called with, cases first::

    def kfac_lab_examples():
        yield Mixed(5, 4), torch.randn(6, 5)
"""

from __future__ import annotations

from kfac_lab.hooks.specs.claims import kfac_claim_layer, kfac_claim_likelihood
from kfac_lab.hooks.specs.events import (
    kfac_on_run_end,
    kfac_on_run_error,
    kfac_on_run_start,
    kfac_on_step,
    kfac_on_swap,
)
from kfac_lab.hooks.specs.markers import API_VERSION, GROUP, PROJECT, hookimpl, hookspec
from kfac_lab.hooks.specs.others import (
    kfac_register_averages,
    kfac_register_batches,
    kfac_register_collectives,
    kfac_register_methods,
    kfac_register_problems,
    kfac_register_recipes,
    kfac_register_views,
)
from kfac_lab.hooks.specs.steps import (
    kfac_register_blocks,
    kfac_register_dampings,
    kfac_register_estimators,
    kfac_register_models,
    kfac_register_momentums,
    kfac_register_schedules,
    kfac_register_structures,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "PROJECT",
    "hookimpl",
    "hookspec",
    "kfac_claim_layer",
    "kfac_claim_likelihood",
    "kfac_on_run_end",
    "kfac_on_run_error",
    "kfac_on_run_start",
    "kfac_on_step",
    "kfac_on_swap",
    "kfac_register_averages",
    "kfac_register_batches",
    "kfac_register_blocks",
    "kfac_register_collectives",
    "kfac_register_dampings",
    "kfac_register_estimators",
    "kfac_register_methods",
    "kfac_register_models",
    "kfac_register_momentums",
    "kfac_register_problems",
    "kfac_register_recipes",
    "kfac_register_schedules",
    "kfac_register_structures",
    "kfac_register_views",
]
