"""The laws of collectives: solo obeys; one of torch.distributed is tried between two processes."""

from kfac_lab.hooks import Lab
from kfac_lab.testing import check, report
from kfac_lab.testing.broken.collective import Summing
from kfac_lab.testing.processes import two_processes_agree


def test_solo():
    found = check(Lab(entry_points=False).component("collective", "solo"))
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
        "from kfac_lab.testing.broken.collective import Summing\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Averaging(Summing):\n"
        "    def mean_(self, tensors):\n"
        "        super().mean_(tensors)\n"
        "        for tensor in tensors:\n"
        "            tensor /= self.size\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from averaging_of_two import Averaging

    two_processes_agree(Averaging())
    assert check(Averaging()).passed
