"""A panel of a loop of one's own: it shows the history, and the loop's numbers stay the same."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.panel.loop import Stopped
from panel.helpers import Seen


def task(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(200, 6)
    return model, x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def loop(opt, x, y, steps):
    for _ in range(steps):
        opt.step(x, y)


def test_the_chart_is_the_history_and_the_numbers_are_those_without_a_panel(monkeypatch) -> None:
    monkeypatch.setattr("kfac_lab.panel.pace.INTERVAL", 0.0)
    monkeypatch.setattr("kfac_lab.panel.pace.SHARE", 1.0)
    model, x, y = task()
    opt = kl.KFAC(model, likelihood="categorical")
    page = Seen(panel := kl.Panel(opt))
    loop(opt, x, y, 20)
    panel.live.last()
    for name in ("loss", "error"):
        assert np.array_equal(page.points("KFAC", name)[1], opt.history[name])
    assert len(page.messages) > 20, "one a step"
    plain, x, y = task()
    other = kl.KFAC(plain, likelihood="categorical")
    loop(other, x, y, 20)
    assert list(other.history["loss"]) == list(opt.history["loss"])
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_view_can_be_opened(monkeypatch) -> None:
    model, x, y = task()
    opt = kl.KFAC(model, likelihood="categorical")
    page = Seen(panel := kl.Panel(opt))
    loop(opt, x, y, 2)
    for number, (name, _) in enumerate(panel.view.options):
        panel.view.value = number
        opt.step(x, y)
        panel.live.last()
        assert page.messages[-1]["view"] == name and "failed" not in page.words
        if name in ("spectra", "factors"):
            assert "layer 0" in page.words and "layer 2" in page.words


def test_a_swap_waits_for_the_next_step_and_is_a_mark() -> None:
    model, x, y = task()
    opt = kl.KFAC(model, likelihood="categorical")
    panel = kl.Panel(opt)
    loop(opt, x, y, 3)
    panel.slots["damping"].choice.value = "tied"
    assert panel.slots["damping"].change() in panel.pending.value.replace("&#x27;", "'")
    panel.buttons["Apply"].click()
    assert "At the next step: damping = tied" in panel.controller.message
    assert not opt.history.marks
    opt.step(x, y)
    assert [(m.step, dict(m.parts)) for m in opt.history.marks] == [(3, {"damping": "tied"})]
    panel.controller.press("Nudge", what="λ", factor=2.0)
    before = opt.history["lam"][-1]
    opt.step(x, y)
    assert opt.history["lam"][-1] == pytest.approx(2 * before)
    panel.controller.press("Apply", damping="nothing")
    assert "there is no damping" in panel.message.value


def test_stop_ends_the_loop_at_its_next_step_with_everything_kept() -> None:
    model, x, y = task()
    opt = kl.KFAC(model, likelihood="categorical")
    panel = kl.Panel(opt)
    loop(opt, x, y, 4)
    panel.buttons["Stop"].click()
    assert panel.controller.state == "stopping"
    with pytest.raises(Stopped, match="after step 4; everything is kept"):
        opt.step(x, y)
    assert opt.step_count == 4 == len(opt.history)
    assert Stopped("x")._render_traceback_() == ["x"]
    opt.step(x, y)  # the loop can be run again
    assert opt.step_count == 5


def interrupted(call, place: int) -> bool:
    """Whether an interrupt came, as a signal's would, before a line: so many of the painter's, of
    what it is sent by, and of the panel's are passed.

    Not where a lock is taken and left, which CPython does in one go.
    """
    passed = 0

    def entered(frame, event, arg):
        code = frame.f_code
        mine = Path(code.co_filename).name in ("painter.py", "wire.py", "panel.py")
        return line if mine and code.co_name not in ("paint", "_show") else None

    def line(frame, event, arg):
        nonlocal passed
        passed += event == "line"
        if passed == place:
            raise KeyboardInterrupt
        return line

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_wherever_an_interrupt_comes_the_last_points_are_shown() -> None:
    """What was painted when it came may not have been sent: the end of the cell sends it."""
    model, x, y = task()
    opt = kl.KFAC(model, likelihood="categorical")
    page = Seen(panel := kl.Panel(opt))
    loop(opt, x, y, 2)
    panel.refresh = lambda: None  # dear, and of no matter here
    place = interrupts = 0
    while not place or interrupted(lambda: opt.step(x, y), place):
        interrupts += bool(place)
        panel._after_cell()
        points, losses = page.points("KFAC", "loss")[1], opt.history["loss"]
        assert np.array_equal(points, losses), f"after line {place}"
        panel.live._pace.soon()
        place += 3
    assert interrupts > 30, interrupts


def test_watch_is_one_line_and_its_block_ends_at_a_stop() -> None:
    model, x, y = task()
    opt = kl.KFAC(model, likelihood="categorical")
    with kl.watch(opt) as panel:
        for k in range(10):
            opt.step(x, y)
            if k == 5:
                panel.stop()
    assert opt.step_count == 6 and panel.controller.state == "stopped"
    with pytest.raises(ZeroDivisionError), kl.watch(opt):
        opt.step(x, y)
        _ = 1 / 0
    loop(opt, x, y, 2)  # nobody looks any more
    assert panel.controller.state == "stopped"


def test_a_preconditioner_has_a_history_and_a_panel() -> None:
    model, x, y = task()
    pre = kl.Preconditioner(model, likelihood="categorical")
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    page = Seen(panel := kl.Panel(pre))
    losses = []
    for _ in range(12):
        sgd.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss))
        pre.step(loss=loss)
        sgd.step()
    panel.live.last()
    assert list(pre.history["step"]) == list(range(1, 13))
    assert np.array_equal(page.points("Preconditioner", "loss")[1], losses)
    assert losses[-1] < losses[0]
    panel.close()
    assert "step" not in vars(pre)


def trained(model, x, y, pre, sgd, steps):
    """An ordinary loop; the preconditioned gradients of its last step."""
    for _ in range(steps):
        sgd.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        pre.step()
        found = [p.grad.clone() for p in model.parameters()]
        sgd.step()
    return found


def test_a_preconditioner_is_swapped_by_the_panel_between_two_steps() -> None:
    model, x, y = task()
    pre = kl.Preconditioner(model, likelihood="categorical")
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    panel = kl.Panel(pre)
    assert set(panel.seen) == {"estimator", "block", "structure", "damping", "schedule"}
    assert "nothing is changed yet" in panel.pending.value
    trained(model, x, y, pre, sgd, 2)
    panel.slots["structure"].choice.value = "block_tridiagonal"
    panel.buttons["Apply"].click()
    assert not pre.history.marks
    trained(model, x, y, pre, sgd, 1)
    assert [(m.step, dict(m.parts)) for m in pre.history.marks] == [
        (3, {"structure": "block_tridiagonal"})
    ]
    trained(model, x, y, pre, sgd, 1)
    panel.controller.press("Apply", momentum="fixed(lr=1.0, mu=0.5)")
    trained(model, x, y, pre, sgd, 1)
    assert "a Preconditioner uses estimator, block" in panel.message.value
    panel.close()


# ---- held-out cases ------------------------------------------------------------------------------


@pytest.mark.parametrize("face", ["KFAC", "Preconditioner"])
def test_held_out_cases_have_a_curve_of_their_own(face) -> None:
    model, x, y = task()
    model.append(nn.Dropout(0.5))
    opt = getattr(kl, face)(model, likelihood="categorical")
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    test_x, test_y = torch.randn(50, 6), torch.randint(0, 3, (50,))
    page = Seen(panel := kl.Panel(opt, held_out=(test_x, test_y), training=(x, y), every=3))
    expected = []
    for k in range(7):
        loop(opt, x, y, 1) if face == "KFAC" else trained(model, x, y, opt, sgd, 1)
        if k in (2, 5):
            with torch.no_grad():
                outputs = model.eval()(test_x)
                model.train()
            wrong = 100 * float((outputs.argmax(1) != test_y).double().mean())
            expected.append((k + 1, float(nn.functional.cross_entropy(outputs, test_y)), wrong))
    if face == "Preconditioner":  # its sgd moved the model after the evaluation
        expected = [(k, None, None) for k, _, _ in expected]
    panel.live.last()
    found = [e for e in opt.history.evaluations if e["split"] == "test"]
    assert [e["step"] for e in found] == [3, 6] and model.training
    assert len(opt.history.evaluations) == 4, "the training set too"
    for one, (_, loss, error) in zip(found, expected, strict=True):
        assert loss is None or one["loss"] == pytest.approx(loss, rel=1e-5)
        assert error is None or one["error"] == pytest.approx(error)
    at, points = page.points(face, "held out")
    assert list(at) == [3.0, 6.0] and list(points) == [e["loss"] for e in found]
    panel.close()


def test_evaluating_changes_no_number_and_takes_no_time_of_the_clock() -> None:
    def run(**more):
        model, x, y = task()
        opt = kl.KFAC(model, likelihood="categorical")
        panel = kl.Panel(opt, **more)
        begin = time.monotonic()
        loop(opt, x, y, 6)
        took = time.monotonic() - begin
        panel.close()
        return opt, took

    def slow():
        time.sleep(0.25)
        torch.rand(3)
        return 7.5

    plain, _ = run()
    opt, took = run(held_out=slow, every=2)
    assert list(opt.history["loss"]) == list(plain.history["loss"])
    assert [(e["step"], e["error"]) for e in opt.history.evaluations] == [
        (2, 7.5), (4, 7.5), (6, 7.5)
    ]  # fmt: skip
    assert opt.history["seconds"][-1] < took - 0.74


def test_held_out_of_a_foreign_loop_and_what_goes_wrong() -> None:
    class Trainer:
        def __init__(self):
            self.history = []

        def step(self):
            self.history.append({"loss": 1.0})

    trainer = Trainer()
    page = Seen(panel := kl.Panel(trainer, held_out=lambda: {"loss": 0.5}, every=2))
    for _ in range(4):
        trainer.step()
    panel.live.last()
    axes = next(a for a in page.spec[0]["axes"] if a["y"]["label"] == "loss, evaluated")
    assert list(page.store[axes["parts"][0]["y"]["$"]]) == [0.5, 0.5]
    panel.close()
    panel = kl.Panel(trainer, held_out=lambda: 1 / 0, every=1)
    trainer.step()
    trainer.step()
    assert "ZeroDivisionError" in panel.message.value and len(trainer.history) == 6
    panel.close()
    with pytest.raises(kl.RecipeError, match="a function that gives the error"):
        kl.Panel(trainer, held_out=(torch.zeros(1, 1), torch.zeros(1, 1)))
    with pytest.raises(kl.RecipeError, match="nothing to evaluate"):
        kl.Panel(trainer, every=3)


@pytest.mark.parametrize("rows", [False, True])
def test_any_object_with_a_history(rows) -> None:
    class Trainer:
        history = [] if rows else {"train_loss": [], "accuracy": [], "name": "x"}

    trainer = Trainer()
    page = Seen(panel := kl.Panel(trainer))
    for k in range(8):
        row = {"train_loss": 1.0 / (k + 1), "accuracy": k / 8}
        if rows:
            trainer.history.append(row)
        else:
            for name, value in row.items():
                trainer.history[name].append(value)
    panel.live.last()
    assert np.array_equal(page.points("Trainer", "accuracy")[1], np.arange(8) / 8)
    assert np.array_equal(page.points("Trainer", "train_loss")[0], np.arange(1, 9))
    more = {"train_loss": 0.1, "accuracy": 1.0}
    _ = (
        [trainer.history.append(more)]
        if rows
        else [trainer.history[n].append(v) for n, v in more.items()]
    )
    end = time.monotonic() + 10
    while len(page.points("Trainer", "accuracy")[1]) < 9:  # a thread looks at it
        assert time.monotonic() < end
        time.sleep(0.02)
    panel.buttons["Stop"].click()
    assert "interrupt the cell" in panel.message.value
    panel.close()


def test_what_has_no_history_is_refused() -> None:
    with pytest.raises(kl.RecipeError, match="a panel takes a Run, not a SGD"):
        kl.Panel(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
