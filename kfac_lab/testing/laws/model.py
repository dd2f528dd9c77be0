"""The former home of the laws of ``quadratic_model``, for whoever imports it."""

from kfac_lab.testing.laws.quadratic_model import *  # noqa: F403
