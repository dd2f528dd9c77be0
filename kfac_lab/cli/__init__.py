"""The command line: ``kfac-lab demo | race | train | bench | reproduce | components | check``, ….

A command ends with 0; with 2 and one sentence on what was wrong, for every error of the package;
with 130 after Ctrl-C, everything kept.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from kfac_lab.errors import KfacLabError

__all__ = ["main", "parser"]

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; ``argv`` is the command line after the name."""
    from kfac_lab.cli.terminal import plainly

    options = parser().parse_args(argv)
    with plainly(sys.stdout), plainly(sys.stderr):
        try:
            code: int = options.run(options)
            sys.stdout.flush()
        except KfacLabError as error:
            print(f"kfac-lab: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # `kfac-lab components | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            print(f"kfac-lab: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("kfac-lab: interrupted", file=sys.stderr)
            return INTERRUPTED
    return code


def parser() -> argparse.ArgumentParser:
    """The argument parser; every command sets ``run``, a function of the parsed options."""
    from kfac_lab import __version__

    top = argparse.ArgumentParser(
        prog="kfac-lab", description="A laboratory for K-FAC (Martens & Grosse 2015)."
    )
    top.add_argument("--version", action="version", version=f"kfac-lab {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _demo(commands)
    _race(commands)
    _train(commands)
    _lab(commands)
    _bench(commands)
    _reproduce(commands)
    _components(commands)
    _plugins(commands)
    _check(commands)
    _new_plugin(commands)
    return top


# --- the commands ---------------------------------------------------------------------------------


def _demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "K-FAC against tuned Nesterov SGD, Adam, Muon and SOAP; a picture, CSV and table"
    demo = commands.add_parser("demo", help=text, description=text)
    demo.add_argument(
        "--seconds", type=_seconds, default=40.0, help="of training for each method (default 40)"
    )
    demo.add_argument(
        "--out", type=Path, default=Path("demo"), help="the folder for the results (default demo)"
    )
    demo.add_argument("--problem", default="curves", help="which problem (default curves)")
    _racing(demo)
    demo.set_defaults(run=_run_demo)


def _race(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "any methods on any problem, in turns, by the clock: who leads, and from when"
    race = commands.add_parser("race", help=text, description=text)
    race.add_argument("problem", help="a problem's name, or module:function of one's own")
    race.add_argument(
        "--seconds", type=_seconds, default=40.0, help="of training for each method (default 40)"
    )
    race.add_argument(
        "--out", type=Path, default=Path("race"), help="the folder for the results (default race)"
    )
    _racing(race)
    race.set_defaults(run=_run_demo)


def _racing(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="nag, adam, muon, soap, and recipes such as robust (default: all baselines, robust "
        "and paper)",
    )
    demo.add_argument(
        "--threads",
        type=_threads,
        default=1,
        help="CPU threads, the same for every method (default 1, so that numbers compare between "
        "machines)",
    )
    demo.add_argument("--seed", type=int, default=0, help="of every draw (default 0)")
    demo.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda, …")


def _train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "train a problem; Ctrl-C ends at a step boundary with everything kept"
    train = commands.add_parser("train", help=text, description=text)
    train.add_argument("problem", nargs="?", help="a problem's name; may be left out with --resume")
    train.add_argument("--recipe", help="a recipe's name (default: paper)")
    end = train.add_argument_group("how long (default: 300 steps)")
    end.add_argument("--steps", type=_count, help="up to this step, those of --resume included")
    end.add_argument("--seconds", type=_seconds, help="up to so many seconds of training")
    parts = train.add_argument_group("parts")
    parts.add_argument(
        "--set",
        dest="parts",
        action="append",
        type=_part,
        default=[],
        metavar="SLOT=TEXT",
        help="another part in the recipe, such as damping='tied(lam=10)'",
    )
    parts.add_argument(
        "--swap",
        dest="swaps",
        action="append",
        type=_swap,
        default=[],
        metavar="STEP:SLOT=TEXT",
        help="another part after that step, such as 60:structure=block_tridiagonal",
    )
    keeping = train.add_argument_group("files")
    keeping.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="keep the run: on its way, and where it ends",
    )
    keeping.add_argument(
        "--save-every",
        type=_every,
        metavar="N",
        help="save after so many steps, or so often: 200, 30s, 5m, 1h (default: every half minute)",
    )
    keeping.add_argument("--resume", type=Path, metavar="FILE", help="go on with a saved run")
    keeping.add_argument("--csv", type=Path, metavar="FILE", help="the history, a line per step")
    keeping.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the history")
    train.add_argument("--seed", type=int, help="of every draw (default 0)")
    train.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda, …")
    train.add_argument("--threads", type=_threads, help="CPU threads (default: torch's choice)")
    train.add_argument(
        "--evaluate",
        type=_count,
        metavar="EVERY",
        help="measure the whole training set every so many steps",
    )
    train.add_argument("--quiet", action="store_true", help="the table at the end, nothing else")
    train.set_defaults(run=_run_train)


def _lab(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "JupyterLab on the tour: the live panel, where parts are swapped while training runs"
    lab = commands.add_parser("lab", help=text, description=text)
    lab.add_argument("more", nargs=argparse.REMAINDER, help="behind --: options of JupyterLab")
    lab.set_defaults(run=_run_lab)


def _bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "the time of a K-FAC step beside an SGD step of the same batch and network"
    bench = commands.add_parser("bench", help=text, description=text)
    bench.add_argument("problem", nargs="?", default="curves", help="a problem's name")
    bench.add_argument("--recipe", default="paper", help="a recipe's name (default: paper)")
    bench.add_argument(
        "--batch", type=_count, nargs="+", default=[1000, 5000], help="sizes (default 1000 5000)"
    )
    bench.add_argument("--steps", type=_count, default=40, help="of each (default 40)")
    bench.add_argument("--threads", type=_threads, default=1, help="CPU threads (default 1)")
    bench.set_defaults(run=_run_bench)


def _reproduce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "a long experiment of the paper, resumable: killed, it goes on from its last snapshot"
    make = commands.add_parser("reproduce", help=text, description=text)
    make.add_argument("name", help="curves, mnist, faces, or digits for a short one")
    make.add_argument(
        "--results", type=Path, default=Path("results"), help="the folder of NAME.jsonl"
    )
    make.add_argument("--work", type=Path, help="the folder of snapshots (default: user's cache)")
    make.add_argument("--only", action="append", metavar="METHOD", help="this method; repeatable")
    make.add_argument("--seed", type=int, help="this seed alone")
    make.add_argument("--until", type=_count, metavar="STEP", help="no run beyond this step")
    make.add_argument("--device", type=_device, default="cpu", help="cpu (default), cuda, …")
    make.add_argument("--threads", type=_threads, default=1, help="CPU threads (default 1)")
    make.add_argument("--estimate", action="store_true", help="say what it would cost, and end")
    make.set_defaults(run=_run_reproduce)


def _components(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "every part there is, with its parameters"
    components = commands.add_parser("components", help=text, description=text)
    components.add_argument("slot", nargs="?", help="one slot only, such as damping")
    components.add_argument("--markdown", action="store_true", help="as a Markdown table")
    components.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        help="put the Markdown between the components:begin and components:end comments of a file",
    )
    components.set_defaults(run=_run_components)


def _plugins(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "the plugins found, what they bring, and what went wrong"
    plugins = commands.add_parser("plugins", help=text, description=text)
    plugins.add_argument("--why", metavar="NAME", help="all about one plugin, a traceback included")
    plugins.set_defaults(run=_run_plugins)


def _check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "the laws of the conformance kit, tried on plugins and on all that they bring"
    check = commands.add_parser("check", help=text, description=text)
    check.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a distribution, a plugin, a module, or one component as module:Class (default: every "
        "plugin that is installed)",
    )
    check.add_argument("--laws", action="store_true", help="list all laws, and end")
    check.add_argument("--verbose", action="store_true", help="tell how each law went")
    check.set_defaults(run=_run_check)


def _new_plugin(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "a new distribution with one component, which installs and passes its tests at once"
    new = commands.add_parser("new-plugin", help=text, description=text)
    new.add_argument("name", help="the distribution's name, such as kfac-lab-mine")
    new.add_argument(
        "--into", type=Path, default=Path(), metavar="DIR", help="where (default: here)"
    )
    new.add_argument(
        "--slot",
        default="damping",
        help="of the component (default damping): damping, block, estimator, momentum, schedule, "
        "batch, average or view",
    )
    new.set_defaults(run=_run_new_plugin)


# A command's module is imported when it runs: --help needs no torch.


def _run_demo(options: argparse.Namespace) -> int:
    from kfac_lab.cli.demo import demo

    return demo(options)


def _run_train(options: argparse.Namespace) -> int:
    from kfac_lab.cli.train import train

    return train(options)


def _run_lab(options: argparse.Namespace) -> int:
    from kfac_lab.cli.lab import lab

    return lab(options)


def _run_bench(options: argparse.Namespace) -> int:
    from kfac_lab.cli.bench import bench

    return bench(options)


def _run_reproduce(options: argparse.Namespace) -> int:
    from kfac_lab.cli.reproduce import reproduce

    return reproduce(options)


def _run_components(options: argparse.Namespace) -> int:
    from kfac_lab.cli.tables import components

    return components(options)


def _run_plugins(options: argparse.Namespace) -> int:
    from kfac_lab.cli.tables import plugins

    return plugins(options)


def _run_check(options: argparse.Namespace) -> int:
    from kfac_lab.cli.check import check

    return check(options)


def _run_new_plugin(options: argparse.Namespace) -> int:
    from kfac_lab.cli.new_plugin import new_plugin

    return new_plugin(options)


# --- what an option takes -------------------------------------------------------------------------


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number above 0")
    return int(text)


def _threads(text: str) -> int:
    count, most = _count(text), max(64, 4 * (os.cpu_count() or 1))
    if count > most:  # the libraries beneath do not survive as many as they are asked for
        raise argparse.ArgumentTypeError(
            f"{text} threads are too many: this machine has {os.cpu_count()} cores, and takes at "
            f"most {most}"
        )
    return count


def _every(text: str) -> tuple[float, str]:
    """("steps" | "seconds") and how many."""
    found = re.fullmatch(r"([0-9]{1,9})(s|m|h)?", text)
    if found is None or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(
            f"{_short(text)} is neither a number of steps, such as 200, nor a time, such as 30s, "
            "5m or 1h"
        )
    if found[2] is None:
        return int(found[1]), "steps"
    return int(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[found[2]], "seconds"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _device(text: str) -> str:
    if text == "auto":
        return text
    import torch

    try:
        torch.zeros(1, device=torch.device(text)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {reason}") from None
    return text


def _part(text: str) -> tuple[str, str]:
    slot, equals, value = (piece.strip() for piece in text.partition("="))
    if not equals or not slot.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form slot=text")
    return slot, value


def _swap(text: str) -> tuple[int, str, str]:
    step, colon, rest = text.partition(":")
    if not colon or not re.fullmatch(" *[0-9]{1,18} *", step):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form step:slot=text")
    return int(step), *_part(rest)
