"""Field metadata, validation sentences, and the text form of a component."""

import dataclasses
import math
import random
import struct
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest

from hooks.parts import LevenbergMarquardt
from kfac_lab.core import descriptions, parameters
from kfac_lab.core.parameters import build, describe, parameter, parse, text, validate
from kfac_lab.errors import NumericalError, RecipeError


@dataclass(frozen=True)
class Mixture:
    count: int = parameter(5, low=1, high=10)
    rate: float | None = parameter(None, low=0.0, high=1.0)
    pi: Literal["trace", "one"] = "trace"
    mode: str = parameter("a", choices=("a", "bee"))
    exact: bool = False
    label: str = ""
    sides: tuple[int, ...] = parameter((1, 2), low=0)
    anything: Any = None
    kind: ClassVar[str] = "toy"
    derived: int = field(default=0, init=False)


def sentence(component: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        validate(component)
    return str(caught.value)


# --- validation ---


def test_the_sentence_has_value_rule_symbol_and_section() -> None:
    assert sentence(LevenbergMarquardt(lam=-1.0)) == (
        "levenberg_marquardt: lam=-1.0 must be at least 0 (λ, section 6.5)"
    )
    assert sentence(LevenbergMarquardt(omega1=1.5)) == (
        "levenberg_marquardt: omega1=1.5 must be at most 1 (ω1)"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"count": 0}, "mixture: count=0 must be at least 1"),
        ({"count": 11}, "mixture: count=11 must be at most 10"),
        ({"count": 2.0}, "mixture: count=2.0 must be a whole number"),
        ({"count": True}, "mixture: count=True must be a whole number"),
        ({"count": None}, "mixture: count=None must be a whole number"),
        ({"rate": "fast"}, "mixture: rate='fast' must be a number or None"),
        ({"rate": False}, "mixture: rate=False must be a number or None"),
        ({"rate": math.nan}, "mixture: rate=nan is not a number"),
        ({"rate": math.inf}, "mixture: rate=inf must be at most 1"),
        ({"exact": 1}, "mixture: exact=1 must be True or False"),
        ({"label": 3}, "mixture: label=3 must be a text"),
        (
            {"pi": "trase"},
            "mixture: pi='trase' must be one of 'trace', 'one' (did you mean 'trace'?)",
        ),
        ({"mode": "c"}, "mixture: mode='c' must be one of 'a', 'bee'"),
        ({"sides": (1, -1)}, "mixture: sides=(1, -1) must be at least 0"),
        ({"sides": (1, 2.5)}, "mixture: sides=(1, 2.5) must be tuple[int, ...]"),
        ({"sides": [1, 2]}, "mixture: sides=[1, 2] must be tuple[int, ...]"),
        ({"sides": (1, math.nan)}, "mixture: sides=(1, nan) is not a number"),
    ],
)
def test_each_rule_has_its_sentence(given: dict[str, Any], expected: str) -> None:
    assert sentence(Mixture(**given)) == expected


def test_what_is_allowed_is_allowed() -> None:
    validate(Mixture())
    validate(Mixture(count=1, rate=0, sides=()))  # bounds are inclusive, an int is a number
    validate(Mixture(count=10, rate=1.0, pi="one", mode="bee", anything=object()))


def test_an_infinity_is_a_value_only_where_the_field_says_so() -> None:
    assert sentence(LevenbergMarquardt(lam=math.inf)).endswith(
        "lam=inf must be finite (λ, section 6.5)"
    )

    @dataclass(frozen=True)
    class Bounds:
        most: float = math.inf
        least: float = parameter(0.0, infinite=True)
        sides: tuple[float, ...] = ()

    validate(Bounds(most=math.inf, least=-math.inf))
    assert sentence(Bounds(sides=(1.0, math.inf))) == "bounds: sides=(1.0, inf) must be finite"
    assert sentence(Bounds(most=10**400)).endswith("must be below 2^63")


def test_constructors_store_and_do_nothing_else() -> None:
    assert LevenbergMarquardt(lam="wrong").lam == "wrong"  # type: ignore[arg-type]


def test_outsiders_need_no_helper_of_ours() -> None:
    @dataclass(frozen=True)
    class Bare:
        lam: float = field(default=1.0, metadata={"symbol": "λ", "low": 0.5, "section": 6.5})
        free: int = 3

    assert sentence(Bare(lam=0.1)) == "bare: lam=0.1 must be at least 0.5 (λ, section 6.5)"
    assert sentence(Bare(free="x")) == "bare: free='x' must be a whole number"  # type: ignore[arg-type]


def test_an_annotation_that_cannot_be_resolved_checks_nothing_but_the_others() -> None:
    @dataclass(frozen=True)
    class Forward:
        odd: "NotThere" = 1  # type: ignore[name-defined]  # noqa: F821
        count: "int" = 2

    validate(Forward(odd="text"))  # type: ignore[arg-type]
    assert sentence(Forward(count="x")) == "forward: count='x' must be a whole number"  # type: ignore[arg-type]


def test_annotations_that_are_computed_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from Python 3.14 on, whose module answers here: the class's own dictionary has none."""

    class Reference:
        """What an unknown name becomes."""

    class Later:
        x: "Nowhere"  # type: ignore[name-defined]  # noqa: F821
        rate: int

        def __init__(self, x: Any = 1, rate: int = 2) -> None:
            self.x, self.rate = x, rate

    told = {"x": Reference(), "rate": int}
    answers = SimpleNamespace(
        Format=SimpleNamespace(FORWARDREF="forward references"),
        ForwardRef=Reference,
        get_annotations=lambda target, format: told if target is Later else {},
    )
    monkeypatch.setitem(sys.modules, "annotationlib", answers)
    Later.__annotations__ = {"x": "Nowhere"}
    assert descriptions._written(Later) == {"x": Any, "rate": int}
    assert descriptions._hints(Later) == {"x": Any, "rate": int}


def test_check_is_asked_after_the_fields() -> None:
    @dataclass(frozen=True)
    class Periods:
        T2: int = parameter(20, low=1)
        T3: int = parameter(20, low=1)

        def check(self) -> str | None:
            if self.T2 % self.T3:
                return f"T2={self.T2} must be a multiple of T3={self.T3}"
            return None

    validate(Periods(40, 20))
    assert sentence(Periods(30, 20)) == "periods: T2=30 must be a multiple of T3=20"
    assert sentence(Periods(30, 0)) == "periods: T3=0 must be at least 1"  # not a ZeroDivisionError


def test_a_field_called_check_is_no_rule_and_check_fields_is() -> None:
    @dataclass(frozen=True)
    class OnDrift:
        check: int = 5

        def check_fields(self) -> str | None:
            return "5 only" if self.check != 5 else None

    validate(OnDrift())
    assert sentence(OnDrift(6)) == "on_drift: 5 only"


def test_a_check_that_breaks_is_named() -> None:
    @dataclass(frozen=True)
    class Broken:
        def check(self) -> str | None:
            raise KeyError("lost")

    @dataclass(frozen=True)
    class Named:
        def check(self) -> str | None:
            raise NumericalError("as it is")

    assert sentence(Broken()) == "broken: its own check() failed with KeyError: 'lost'"
    with pytest.raises(NumericalError, match="as it is"):
        validate(Named())


# --- descriptions ---


def test_describe_tells_what_tables_and_controls_need() -> None:
    known = {d.name: d for d in describe(Mixture)}
    assert list(known) == [
        "count", "rate", "pi", "mode", "exact", "label", "sides", "anything"
    ]  # no ClassVar, nothing that the constructor does not take  # fmt: skip
    kinds = {name: (d.kind, d.optional) for name, d in known.items()}
    assert kinds == {
        "count": ("int", False),
        "rate": ("float", True),
        "pi": ("choice", False),
        "mode": ("choice", False),
        "exact": ("bool", False),
        "label": ("str", False),
        "sides": ("tuple", False),
        "anything": ("other", False),
    }
    assert known["pi"].choices == ("trace", "one")
    assert (known["count"].low, known["count"].high, known["count"].default) == (1, 10, 5)
    (lam, *_) = describe(LevenbergMarquardt())
    assert (lam.symbol, lam.section, lam.low, lam.high, lam.log) == ("λ", "6.5", 0, None, True)


def test_describe_reads_the_signature_of_a_factory() -> None:
    def ring(seed: int = 0, *, device: str, **more: Any) -> None: ...

    class Callable_:
        def __call__(self, seed: int = 3) -> None: ...

    seed, device = describe(ring)
    assert (seed.name, seed.kind, seed.default) == ("seed", "int", 0)
    assert (device.name, device.kind, device.required) == ("device", "str", True)
    assert [(d.name, d.kind, d.default) for d in describe(Callable_())] == [("seed", "int", 3)]


def test_parameter_keeps_only_what_it_was_told() -> None:
    (plain,) = dataclasses.fields(
        dataclass(type("T", (), {"__annotations__": {"x": int}, "x": parameter(1)}))
    )
    assert dict(plain.metadata) == {}
    (zero,) = dataclasses.fields(
        dataclass(
            type("T", (), {"__annotations__": {"x": int}, "x": parameter(1, low=0, log=True)})
        )
    )
    assert dict(zero.metadata) == {"low": 0, "log": True}


def test_names_derive_from_classes() -> None:
    made = [type(name, (), {}) for name in ("LevenbergMarquardt", "EKFAC", "KLClip", "Rank1Plus")]
    names = [parameters.component_name(cls) for cls in made]
    assert names == ["levenberg_marquardt", "ekfac", "kl_clip", "rank1_plus"]


# --- the text form ---


def test_parse_takes_literals_only() -> None:
    assert parse(" constant ") == ("constant", {})
    assert parse("dist-a/constant()") == ("dist-a/constant", {})
    assert parse(
        "c(a=1, b=-2.5e-3, c='x', d=True, e=None, f=inf, g=-inf, h=(1, (2,), ()), i=1/8)"
    ) == (
        "c",
        {
            "a": 1, "b": -2.5e-3, "c": "x", "d": True, "e": None, "f": math.inf, "g": -math.inf,
            "h": (1, (2,), ()), "i": 0.125,
        },
    )  # fmt: skip
    assert parse("c(\n  a=1,\n)").values == {"a": 1}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "is not a component's text"),
        ("lm(lam=1) + 1", "is not a component's text"),
        ("lm(lam=1)(mu=2)", "is not a component's text"),
        ("lm(150)", "150 needs a name; write lm(key=150)"),
        ("lm(*a)", "needs a name"),
        ("lm(**a)", "** is not allowed here"),
        ("lm(a=1, a=2)", "twice"),
        ("lm(a=)", "cannot be read"),
        ("lm(a=b)", "a: b is not a literal"),
        ("lm(a=__import__('os').system('true'))", "is not a literal"),
        ("lm(a=[1, 2])", "write a tuple, (1, 2,), in place of a list"),
        ("lm(a={})", "is not a literal"),
        ("lm(a=b'x')", "is not a literal"),
        ("lm(a=1j)", "is not a literal"),
        ("lm(a=-'x')", "'x' is not a number"),
        ("lm(a=1/0)", "division by zero"),
        ("lm(a=2**99)", "is not a literal"),
        ("lm(" + "(" * 5000, "lm"),
    ],
)
def test_parse_says_what_it_cannot_read(source: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(source)
    assert words in str(caught.value)


def test_a_text_names_only_what_differs() -> None:
    assert text(LevenbergMarquardt()) == "levenberg_marquardt"
    assert text(LevenbergMarquardt(lam=1e-3)) == "levenberg_marquardt(lam=0.001)"
    assert text(LevenbergMarquardt(150), "dist/lm") == "dist/lm"
    assert text(LevenbergMarquardt(clip=False), complete=True) == (
        "levenberg_marquardt(lam=150.0, omega1=0.77, clip=False)"
    )


def test_one_is_not_true_and_minus_zero_is_not_zero() -> None:
    @dataclass(frozen=True)
    class Odd:
        a: Any = 0
        b: float = 0.0

    assert text(Odd(a=False)) == "odd(a=False)"
    assert text(Odd(b=-0.0)) == "odd(b=-0.0)"
    again = build(Odd, parse(text(Odd(b=-0.0))).values)
    assert math.copysign(1, again.b) == -1


def test_floats_make_the_round_trip_bit_by_bit() -> None:
    generator = random.Random(0)
    floats = [struct.unpack("d", generator.randbytes(8))[0] for _ in range(2000)]
    floats = [x for x in floats if not math.isnan(x)]
    floats += [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, -0.0]
    for x in floats:
        parsed = parse(text(Mixture(anything=x, sides=(x, (x,)))))
        assert struct.pack("d", parsed.values["anything"]) == struct.pack("d", x)
        assert parsed.values["sides"] == (x, (x,))


def test_random_components_make_the_round_trip() -> None:
    generator = random.Random(1)
    letters = "ab'\"\\(){}=,#\n\t λ\u2028"
    for _ in range(500):
        component = Mixture(
            count=generator.randint(1, 10),
            rate=generator.choice([None, 0, generator.random()]),
            pi=generator.choice(["trace", "one"]),
            mode=generator.choice(["a", "bee"]),
            exact=generator.random() < 0.5,
            label="".join(generator.choices(letters, k=generator.randint(0, 6))),
            sides=tuple(generator.choices(range(9), k=generator.randint(0, 3))),
            anything=generator.choice([None, True, 2, 2.5, "x", ()]),
        )
        for complete in (False, True):
            name, values = parse(text(component, complete=complete))
            again = build(Mixture, values, name)
            assert again == component
            assert type(again.anything) is type(component.anything)


def test_numbers_of_other_libraries_are_written_as_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert text(LevenbergMarquardt(lam=numpy.float64(0.1))) == "levenberg_marquardt(lam=0.1)"


def test_what_has_no_literal_form_is_said() -> None:
    with pytest.raises(RecipeError, match="mixture cannot be written as text: anything: a object"):
        text(Mixture(anything=object()))
    with pytest.raises(RecipeError, match="is not a dataclass"):
        text(object())


def test_build_names_the_parameter() -> None:
    with pytest.raises(RecipeError) as caught:
        build(LevenbergMarquardt, {"lambda": 1}, "lm")
    assert str(caught.value) == (
        "lm has no parameter 'lambda' (did you mean 'lam'?); it takes lam, omega1, clip"
    )

    @dataclass(frozen=True)
    class Needy:
        size: int

    with pytest.raises(RecipeError, match=r"needy needs size: write needy\(size=…\)"):
        build(Needy, {})
    assert text(Needy(3)) == "needy(size=3)"
    with pytest.raises(RecipeError, match="must be at least 0"):
        build(LevenbergMarquardt, {"lam": -1})


def test_a_constructor_that_breaks_is_named() -> None:
    @dataclass(frozen=True)
    class Fussy:
        x: int = 0

        def __post_init__(self) -> None:
            raise ValueError("no")

    with pytest.raises(RecipeError, match="fussy could not be made: ValueError: no"):
        build(Fussy, {})
