"""Independent numerical oracles: naive, dense, float64; they import torch and numpy only.

An oracle shares no code with what it checks. Clarity over speed; use tiny networks.
"""
