"""Training claims: minutes each, run by ``make soak``; every test prints its numbers."""
