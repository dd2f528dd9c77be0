"""Launches and side streams of the emulated accelerator are as strict as CUDA's."""

import pytest
import torch
from emulated_queue import Launches, Side

from kfac_lab.core.accelerators import accelerator

pytestmark = pytest.mark.emulated
CPU = torch.device("cpu")


def test_the_engine_finds_them(default_device):
    there = accelerator(default_device)
    assert there is not None and accelerator(CPU) is None
    assert isinstance(there.capture(default_device), Launches)
    assert isinstance(there.side(default_device), Side)


def test_a_launch_has_its_places_and_no_python():
    x, out, calls = torch.ones(3), [], []

    def work():
        calls.append(1)
        out[:] = [(x * 2.0).view(3, 1), torch.stack([x, x]).sum()]

    launch = Launches()(work)
    assert len(calls) == 2  # once to warm up, once to note
    assert all(t.isnan().all() for t in out)  # what is captured has not been done
    first = list(out)
    for value in (1.0, 5.0):
        x.fill_(value)
        launch()
        assert len(calls) == 2 and all(a is b for a, b in zip(out, first, strict=True))
        assert out[0].tolist() == [[2 * value]] * 3 and float(out[1]) == 6 * value


def test_launches_share_their_memory():
    x, out, launches = torch.ones(2), {}, Launches()
    one, other = (launches(lambda n=n: out.update({n: x * n})) for n in (2.0, 3.0))
    one()
    assert out[2.0].tolist() == [2.0, 2.0]
    other()
    assert out[3.0].tolist() == [3.0, 3.0] and out[2.0].isnan().all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: float(x.sum()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x + torch.ones(2, device=CPU).to(x.device),
        lambda x: torch.rand(2),
    ],
)
def test_what_waits_or_draws_cannot_be_captured(wrong):
    x, asked = torch.ones(2), []

    def work():
        asked.append(1)
        wrong(x)

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        Launches()(work)
    assert len(asked) == 2
    wrong(x)  # outside it may


def test_what_a_side_stream_makes_is_waited_for():
    side, x = Side(), torch.ones(2)
    with side():
        made = x * 2.0
        again = made + 1.0
    for wrong in (lambda: made + x, lambda: again.tolist(), lambda: made.view(1, 2) + 0.0):
        with pytest.raises(RuntimeError, match="still to make"):
            wrong()
    with pytest.raises(RuntimeError, match="still reads"):
        x.add_(1.0)
    assert (x + 1.0).tolist() == [2.0, 2.0]  # to read beside it is well
    side.wait()
    x.add_(1.0)
    assert again.tolist() == [3.0, 3.0]
