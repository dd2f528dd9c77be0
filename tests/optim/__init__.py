"""KFAC and Preconditioner: one's own loop around the engine."""
