"""The engine held to the mathematics of the paper by independent dense float64 oracles."""
