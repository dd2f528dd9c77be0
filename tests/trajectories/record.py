"""Records the trajectories anew: `python tests/trajectories/record.py [NAME …]`.

Do so only where numbers are meant to change, and say in the commit which and why.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
FILE = HERE / "recorded.json"


def place() -> str:
    """What digests depend on: the processor, torch and the number of threads."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = found[0].split(":", 1)[1].strip() if found else model
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {capability}, torch {torch.__version__}, 1 thread"


def mask() -> list[int]:
    """What dropout keeps of a few units: builds of torch draw differently from one seed."""
    torch.manual_seed(3)
    return torch.nn.functional.dropout(torch.ones(24), 0.5).ne(0).int().tolist()


def main(names: list[str]) -> None:
    """Plays the cases and writes what they gave."""
    os.environ["KFAC_LAB_PLUGINS"] = ""  # none, as under test: they would claim other layers
    from cases import cases, played

    torch.set_num_threads(1)
    recorded = json.loads(FILE.read_text()) if FILE.exists() and names else {"cases": {}}
    if names and recorded["place"] != place():
        sys.exit(f"recorded on {recorded['place']}, and this is {place()}: record all of them")
    recorded["place"] = place()
    recorded["mask"] = mask()
    for name, case in cases():
        if not names or name in names:
            losses, digest = played(case)
            recorded["cases"][name] = {"losses": losses, "digest": digest}
    FILE.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(recorded['cases'])} trajectories in {FILE.name}, recorded on {place()}")


if __name__ == "__main__":
    main(sys.argv[1:])
