"""The baselines as steppers."""
