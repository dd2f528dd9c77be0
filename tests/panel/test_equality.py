"""The same seed gives the same numbers with and without a panel."""

import asyncio

import pytest
from invariants.helpers import same_run

import kfac_lab as kl
from panel.helpers import Seen, run_of

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")

SWAP = {"structure": "block_tridiagonal", "damping": "tied"}


def headless(run: kl.Run) -> kl.Run:
    return run.advance(6).swap(**SWAP).advance(7)


async def paneled(run: kl.Run, *, every_view: bool = False) -> kl.Run:
    panel = kl.Panel(run)
    for number in range(len(panel.view.options) if every_view else 1):
        panel.view.value = number
    panel.start(steps=6)
    await panel.live
    panel.apply(**SWAP)
    panel.start(steps=7)
    panel.fork()
    await panel.live
    return run


def test_with_and_without() -> None:
    with_panel = asyncio.run(paneled(run_of()))
    same_run(with_panel, headless(run_of()))
    with pytest.raises(AssertionError):  # and the comparison can tell
        same_run(with_panel, run_of().advance(13))


def test_with_pictures_at_every_step(monkeypatch) -> None:
    """Whatever the views look at between steps, the steps are the same."""
    monkeypatch.setattr("kfac_lab.panel.pace.INTERVAL", 0.0)
    monkeypatch.setattr("kfac_lab.panel.pace.SHARE", 1.0)

    async def main():
        run = run_of()
        panel = kl.Panel(run)
        drawn, page = 0, Seen(panel)
        for number in range(len(panel.view.options)):
            panel.view.value = number
            panel.start(steps=2)
            await panel.live
            drawn += page.messages[-1]["view"] == panel.view.options[number][0]
        assert drawn == len(panel.view.options) > 5
        return run, 2 * drawn

    run, steps = asyncio.run(main())
    same_run(run, run_of().advance(steps))


def test_a_named_problem_with_pauses_and_a_rewind() -> None:
    async def main():
        run = kl.Run("digits", "paper", seed=5, device="cpu")
        panel = kl.Panel(run)
        panel.start(steps=3)
        await panel.live
        panel.step()
        await panel.live
        panel.start(steps=4)
        await panel.live
        panel.rewind(2)
        await panel.live
        panel.start(steps=6)
        await panel.live
        return run

    same_run(asyncio.run(main()), kl.Run("digits", "paper", seed=5, device="cpu").advance(8))
