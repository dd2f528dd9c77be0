"""The laws of collectives: one process obeys; one of torch.distributed is tried between two."""

import pytest
from broken.collective import Summing

from kfac_lab.hooks import Lab
from kfac_lab.testing import check, report
from kfac_lab.testing.law import Broken
from kfac_lab.testing.processes import compare


def test_solo():
    found = check(Lab(entry_points=False).component("collective", "single_process"))
    assert found.slot == "collective"
    assert {r.law for r in found.results if r.status == "exempt"} == {"two_processes"}


def test_two_processes_need_a_class_that_can_be_imported():
    class Here(Summing):
        pass

    (result,) = [r for r in report(Here()).results if r.law == "two_processes"]
    assert result.status == "broken" and "a class that another process can import" in result.why


def test_two_processes_that_agree(monkeypatch, tmp_path):
    (tmp_path / "averaging_of_two.py").write_text(
        "import dataclasses, torch\n"
        "from broken.collective import Summing\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Averaging(Summing):\n"
        "    def mean_(self, tensors):\n"
        "        super().mean_(tensors)\n"
        "        for tensor in tensors:\n"
        "            tensor /= self.size\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from averaging_of_two import Averaging

    (result,) = [r for r in check(Averaging()).results if r.law == "two_processes"]
    assert result.status == "obeyed"


def found(**changes):
    """What two ranks report that own in turn."""
    return [
        {"size": 2, "rank": rank, "mean": 2.0, "owners": [0, 1, 0], "sent": [10.0, 11.0], **changes}
        for rank in (0, 1)
    ]


def test_what_two_ranks_must_agree_on():
    compare(found())
    own = found(sent=[10.0, 10.0])
    for rank in (0, 1):
        own[rank]["owners"] = [rank] * 3
    compare(own)  # each builds everything itself: nothing is sent
    for changes, what in (
        ({"mean": 4.0}, "the mean of 1 and 3, 2.0, got 4.0"),
        ({"size": 1}, "size, 2, got 1"),
        ({"sent": [10.0, 10.0]}, "the owner's value, 11.0, got 10.0"),
    ):
        with pytest.raises(Broken, match=what):
            compare(found(**changes))
    unequal = found()
    unequal[1]["owners"] = [1, 1, 0]
    with pytest.raises(Broken, match="the same owners everywhere"):
        compare(unequal)
