"""The command line's grammar, and how it fails."""

import sys

import pytest
import warm

from kfac_lab.cli import main, parser


def test_every_option_of_train_is_understood() -> None:
    words = "train curves --recipe robust --steps 9 --seconds 1.5 --seed 3 --device cpu"
    words += " --threads 2 --set damping=tied --set batch=constant(size=64) --evaluate 5 --quiet"
    words += " --swap 60:structure=block_tridiagonal --save a.pt --csv a.csv --plot a.png"
    options = parser().parse_args(words.split())
    assert (options.problem, options.recipe, options.steps) == ("curves", "robust", 9)
    assert options.parts == [("damping", "tied"), ("batch", "constant(size=64)")]
    assert options.swaps == [(60, "structure", "block_tridiagonal")]
    assert options.save.name == "a.pt" and options.quiet and options.evaluate == 5


def test_the_demo_has_the_promised_defaults() -> None:
    options = parser().parse_args(["demo"])
    assert (options.seconds, str(options.out), options.problem) == (40.0, "demo", "curves")
    assert (options.threads, options.seed) == (1, 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "curves", "--steps", "0"], "not a whole number above 0"),
        (["train", "curves", "--seconds", "-1"], "not a number of seconds"),
        (["train", "curves", "--seconds", "nan"], "not a number of seconds"),
        (["train", "curves", "--set", "damping"], "slot=text"),
        (["train", "curves", "--swap", "damping=tied"], "step:slot=text"),
        (["train", "curves", "--swap", "x:damping=tied"], "step:slot=text"),
        (["train", "curves", "--device", "warp"], "cannot be used here"),
        (["demonstrate"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_nonsense_is_refused_with_a_reason(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_needs_neither_plots_nor_training(words: list[str]) -> None:
    code = (
        "import sys; from kfac_lab.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as stopped: assert stopped.code == 0\n"
        "assert 'matplotlib' not in sys.modules and 'kfac_lab.engine' not in sys.modules"
    )
    done = warm.run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert "kfac-lab" in done.stdout
