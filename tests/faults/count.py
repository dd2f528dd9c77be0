"""Counts what faults at the lines of the package leave behind: the whole of it, or every so many.

    python -m faults.count [--every 1] [NAME …]        in the folder tests

A line for each operation and fault: at how many lines it was raised, how often what it left was the
state of before and how often that of after. Ends with 1 where anything else was left.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from faults.harness import Tally, attacked, known
from faults.test_faults import FAULTS, FILED, OPERATIONS, filed


def tallies(name: str, folder: Path, every: int) -> Iterator[tuple[type[BaseException], Tally]]:
    """Each fault, and what came of it."""
    if name in OPERATIONS:
        found = known(*OPERATIONS[name])
    else:
        (folder / "own").mkdir()
        found = known(*filed(folder)[name], lambda thing: thing.image())
    for first, fault in enumerate(FAULTS):
        yield fault, attacked(found, fault, every, first * (every // 2))


def main() -> int:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="operations; all of them")
    parser.add_argument("--every", type=int, default=1, help="every so many lines")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    whole = Tally()
    for name in given.names or [*OPERATIONS, *FILED]:
        with tempfile.TemporaryDirectory() as place:
            for fault, tally in tallies(name, Path(place), given.every):
                print(f"{name}, {fault.__name__}: {tally}", *tally.torn, sep="\n  ", flush=True)
                whole.lines += tally.lines
                whole.counts += tally.counts
                whole.torn += tally.torn
    print(f"in all {whole}; torn: {len(whole.torn)}")
    return int(bool(whole.torn))


if __name__ == "__main__":
    raise SystemExit(main())
