"""Vocabulary and mathematics of K-FAC: torch only; what authors of plugins import."""
