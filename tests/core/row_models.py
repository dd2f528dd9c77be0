"""Engines and factors for the tests of rows."""

import kfac_lab as kl
from kfac_lab.core.likelihood import resolve
from kfac_lab.engine import attach

EXACT = "model = approximate_fisher\nmomentum = rescaled\n" + (
    "average = none\ndamping = constant(lam=0.01, gamma=0.1)\nschedule = every_step\n"
)


def engine_of(model, inputs, targets, likelihood="categorical", text="", lr=0.0, **slots):
    if "estimator" not in text:
        text += "estimator = exact(fraction=1.0)\n"
    problem = kl.Problem(
        model=model, likelihood=resolve(likelihood), inputs=inputs, targets=targets
    )
    recipe = kl.Recipe.from_text(EXACT + f"batch = constant(size={len(inputs)})\n" + text)
    return attach(problem, recipe.replace(**slots), 0, lr=lr)


def factors(model, inputs, targets, text="", likelihood="categorical"):
    """path → (Ā, G) after one step that moves nothing."""
    engine = engine_of(model, inputs, targets, likelihood, text)
    engine.step()
    table = engine.store.table(spare=False)
    return {
        use.layer.path: tuple(table[i][side].clone() for side in "AG")
        for i, use in enumerate(engine.network.uses)
    }
