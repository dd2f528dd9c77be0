"""History: columns, one transfer for all that is pending, and the ways out and in."""

import csv
import io
import math
import threading

import numpy as np
import pytest
import torch
from invariants.helpers import run_of, same

import kfac_lab as kl
from kfac_lab.core import linalg
from kfac_lab.core.state import Due, StepRecord, Swap
from kfac_lab.history import COLUMNS, Column, History

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


def made(count=5):
    """A history of records with tensors in them, as an engine leaves them."""
    history = History()
    for k in range(1, count + 1):
        history.append(
            StepRecord(
                step=k,
                loss=torch.tensor(1.0 / k, dtype=torch.float64),
                error=torch.tensor(0.5 / k),
                lam=torch.tensor(0.1 * k, dtype=torch.float64),
                batch=10 * k,
                due=Due(True, k % 2 == 0, k % 2 == 0, False, True),
                coefficients=torch.tensor([1.0, 0.1 * k], dtype=torch.float64),
                candidates=((torch.tensor(1.0), torch.tensor(2.0), torch.tensor(-float(k))),) * k,
                jitter={"0, Ā": 1e-6} if k == 2 else {},
                verbs={"move": 0.5},
                seconds=0.25 * k,
            )
        )
    history.marks.append(Swap(3, {"damping": "tied"}, {"damping": "constant"}, "a note"))
    history.evaluations.append({"step": 4, "split": "train", "at": "best", "error": 1.5})
    return history


@pytest.fixture
def reads(monkeypatch):
    """The number of tensors of every host read."""
    calls, work = [], linalg.reading.transfer
    monkeypatch.setattr(linalg.reading, "transfer", lambda ts: (calls.append(len(ts)), work(ts))[1])
    return calls


# --- columns ------------------------------------------------------------------------------------


def test_a_column_is_a_sequence_of_numbers():
    history = made()
    column = history["loss"]
    assert isinstance(column, Column) and len(column) == len(history) == 5
    assert column[0] == 1.0 and column[-1] == 0.2 and type(column[0]) is float
    assert list(column) == [1 / k for k in range(1, 6)]
    assert list(column[1:3]) == [1 / 2, 1 / 3] and isinstance(column[::2], Column)
    assert list(column[::-1]) == list(column)[::-1]
    array = np.asarray(column)
    assert array.dtype == np.float64 and array.shape == (5,)
    assert np.asarray(column, dtype=np.float32).dtype == np.float32
    assert np.mean(column) == pytest.approx(np.mean(array))
    assert (column == [1.0, 0, 0, 0, 0.2]).tolist() == [True, False, False, False, True]
    assert "loss" in repr(column)
    with pytest.raises(IndexError):
        column[5]


def test_an_array_of_a_column_is_a_copy():
    column = made()["loss"]
    np.asarray(column)[0] = 7
    assert column[0] == 1.0


def test_columns_of_a_run():
    run = run_of().advance(6)
    named = ("loss", "error", "alpha", "mu", "lam", "gamma", "rho", "predicted", "seconds")
    for name in named:
        assert name in run.history and len(run.history[name]) == 6
    for name in COLUMNS:
        assert len(run.history[name]) == 6
    assert set(named) <= set(COLUMNS)
    due = [r.due.lam for r in run.history.records]
    assert [not math.isnan(x) for x in run.history["rho"]] == due  # NaN when not due
    assert math.isnan(run.history["mu"][0]) and math.isfinite(run.history["mu"][1])
    assert set(run.history["batch"]) == {16.0}
    with pytest.raises(KeyError, match="no column 'losses'; it has step, loss"):
        run.history["losses"]
    assert "losses" not in run.history


def test_what_a_number_means():
    """loss is h(θ_k) before the move; λ and γ are those that the step used."""
    run = run_of(batch="constant(size=24)", schedule="periodic(T1=1, T2=2, T3=2)")
    for k in range(1, 5):
        here = run.evaluate("train")
        before = [float(x) for x in run.stepper.state_.strength]
        record = run.advance(1).history.records[-1]
        assert record.loss == pytest.approx(here.loss, rel=1e-5)
        assert record.error == pytest.approx(here.error, rel=1e-5)
        assert record.step == k and record.lam == before[0]
        assert (record.lam, record.gamma) in [c[:2] for c in record.candidates]
        if record.due.lam:
            after = run.evaluate("train")
            assert record.actual == pytest.approx(after.loss - here.loss, rel=1e-3, abs=1e-5)
            assert record.rho == pytest.approx(record.actual / record.predicted, rel=1e-12)


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_columns_that_a_method_lacks_are_nan(method):
    text = f"method = {method}\nbatch = constant(size=16)\naverage = polyak"
    run = kl.Run(run_of().problem, text, device="cpu").advance(3)
    for name in ("alpha", "lam", "gamma", "rho", "predicted"):
        assert all(math.isnan(x) for x in run.history[name])
    assert all(math.isfinite(x) for x in run.history["loss"])
    assert all(x > 0 for x in run.history["lr"])


# --- reading ------------------------------------------------------------------------------------


def test_pending_records_are_read_in_one_transfer(reads):
    history = made(7)
    assert reads == []  # to append reads nothing
    history["loss"]
    assert len(reads) == 1
    history["error"], history.records, history.to_csv(), history.state()
    assert len(reads) == 1  # nothing is pending any more
    history.append(StepRecord(step=8, loss=torch.tensor(0.1)))
    history.append(StepRecord(step=9, loss=torch.tensor(0.2)))
    assert list(history["loss"][-2:]) == pytest.approx([0.1, 0.2])
    assert len(reads) == 2 and reads[1] == 2


def test_a_run_s_history_is_read_in_one_transfer(reads):
    run = run_of().advance(6)
    reads.clear()
    run.history["loss"]
    assert len(reads) == 1


def test_read_records_hold_plain_numbers():
    for record in made().records:
        for name in COLUMNS:
            assert isinstance(getattr(record, name), (int, float)), name
        assert all(isinstance(x, float) for c in record.candidates for x in c)
        assert record.candidates == ((1.0, 2.0, -float(record.step)),) * record.step
        assert record.coefficients == (1.0, pytest.approx(0.1 * record.step))
        assert type(record.step) is int and type(record.batch) is int
    assert made().records[1].jitter == {"0, Ā": 1e-6}


def test_records_of_numbers_need_no_read(reads):
    history = History()
    history.append(StepRecord(step=1, loss=0.5))
    assert history["loss"][0] == 0.5 and reads == []


# --- out and in ---------------------------------------------------------------------------------


def test_to_csv_round_trip(tmp_path):
    history = made()
    text = history.to_csv(tmp_path / "run.csv")
    assert (tmp_path / "run.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 5
    for name in COLUMNS:
        read = [float(row[name]) if row[name] else math.nan for row in rows]
        np.testing.assert_array_equal(read, np.asarray(history[name]))  # every digit
    assert rows[0]["rho"] == ""  # NaN is nothing


def test_to_dict():
    found = made().to_dict()
    assert tuple(found) == COLUMNS
    assert found["loss"] == [1 / k for k in range(1, 6)]
    assert all(type(x) is float for column in found.values() for x in column)


def test_state_round_trip_is_plain_and_exact():
    history = run_of().advance(5).history
    history.marks.append(Swap(3, {"damping": "tied"}, {"damping": "constant"}, "a note"))
    history.evaluations.append({"step": 4, "split": "train", "at": "best", "error": 1.5})
    for original in (made(), history, History()):
        state = original.state()
        plain(state)
        again = History.restore(state)
        same(again.state(), state)
        same([r.candidates for r in again.records], [r.candidates for r in original.records])
        assert [r.due for r in again.records] == [r.due for r in original.records]
        assert [r.jitter for r in again.records] == [r.jitter for r in original.records]
        assert again.marks == original.marks and again.evaluations == original.evaluations
        again.append(StepRecord(step=9, loss=1.0))
        assert len(original) == len(state["rows"]) == len(again) - 1


def plain(value):
    """Numbers, texts, lists and dicts: what a file holds without pickle."""
    if isinstance(value, dict):
        assert all(type(k) is str for k in value)
        for v in value.values():
            plain(v)
    elif isinstance(value, list):
        for v in value:
            plain(v)
    else:
        assert value is None or type(value) in (int, float, str, bool), value


def test_to_dataframe_or_a_sentence():
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(kl.KfacLabError, match="pip install pandas"):
            made().to_dataframe()
    else:
        frame = made().to_dataframe()
        assert list(frame.columns) == list(COLUMNS) and len(frame) == 5


# --- housekeeping -------------------------------------------------------------------------------


def test_a_copy_is_its_own():
    history = made()
    other = history.copy()
    other.append(StepRecord(step=6, loss=0.0))
    other.marks.append(Swap(5, {}, {}))
    other.evaluations[0]["error"] = 0
    assert (len(history), len(history.marks)) == (5, 1)
    assert history.evaluations[0]["error"] == 1.5


def test_truncate_forgets_what_came_later():
    history = made()
    history.truncate(3)
    assert list(history["step"]) == [1, 2, 3] and history.step == 3
    assert [m.step for m in history.marks] == [3] and history.evaluations == []
    history = made()
    history["loss"]
    history.truncate(2)
    assert history.marks == [] and len(history["loss"]) == 2
    history.truncate(0)
    assert len(history) == 0 == history.step and list(history["loss"]) == []


def test_keep_forgets_what_came_before():
    history = made()
    history.keep(2)
    assert list(history["step"]) == [4, 5]
    history.append(StepRecord(step=6, loss=torch.tensor(0.5)))
    assert list(history["step"]) == [4, 5, 6] and history["loss"][-1] == 0.5


def test_repr():
    assert repr(History()) == "History(no steps)"
    assert "5 steps" in repr(made()) and "0.2" in repr(made())


def test_two_threads_may_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else both would move the same records, and every column would have them twice."""
    history = History()
    history.append(StepRecord(step=1, loss=torch.tensor(1.0)))
    work, threads = linalg.reading.transfer, []

    def host(tensors):  # type: ignore[no-untyped-def]
        if not threads:
            threads.append(threading.Thread(target=lambda: history["loss"]))
            threads[0].start()
            threads[0].join(0.2)
        return work(tensors)

    monkeypatch.setattr(linalg.reading, "transfer", host)
    assert list(history["loss"]) == [1.0]
    threads[0].join()
    assert list(history["loss"]) == [1.0] and len(history) == 1
