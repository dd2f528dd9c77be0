"""What nbval overlooks: the digits behind "≈", and nothing else of what a notebook says."""

import pytest

from .cells import masked


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("error ≈ 28.9", "error ≈ 31.2"),
        ("≈ 0.0021 s", "≈ 0.0049 s"),
        ("≈ 3e-16", "≈ 0e+00"),
        ("≈ 1.2e-05", "≈ 9.9e-05"),
        ("≈ -7.5 and ≈ 2", "≈ -1.25 and ≈ 9"),
        ("≈ 261 of", "≈ 999.9 of"),
        ("object at 0x7f00aa", "object at 0x7f11bb"),
    ],
)
def test_digits_may_differ(one, other):
    assert masked(one) == masked(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("error ≈ 28.9", "error ≈ 289"),
        ("error ≈ 28.9", "loss ≈ 28.9"),
        ("≈ 0.0021", "≈ 0.021"),
        ("≈ 0.21", "≈ 2.1"),
        ("≈ 1.2e-05", "≈ 1.2e-04"),
        ("≈ 3e-16", "≈ 3e-06"),
        ("≈ 7.5", "≈ -7.5"),
        ("steps 65", "steps 66"),
        ("0.500", "0.501"),
    ],
)
def test_words_magnitudes_signs_and_plain_numbers_may_not(one, other):
    assert masked(one) != masked(other)
