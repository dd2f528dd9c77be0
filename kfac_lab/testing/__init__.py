"""The conformance kit: the laws that a component must obey (``kfac_lab.testing.check``).

    import kfac_lab as kl
    kl.testing.check(Mine())                      # raises LawError, or returns the report
    kl.testing.check(MyLayer(module, ""), inputs=x)
    kl.testing.check_plugin("my-distribution")    # all that it registers and claims

The laws of a slot stand in ``laws/``, one file per slot. The package's own tests hold for each law
a component that breaks it and no other.
"""

from __future__ import annotations

from kfac_lab.testing.check import check, report, slot_of
from kfac_lab.testing.law import Broken, Case, Law, LawError, Report, Result, law, laws_of
from kfac_lab.testing.plugin import check_plugin

__all__ = [
    "Broken",
    "Case",
    "Law",
    "LawError",
    "Report",
    "Result",
    "check",
    "check_plugin",
    "law",
    "laws_of",
    "report",
    "slot_of",
]
