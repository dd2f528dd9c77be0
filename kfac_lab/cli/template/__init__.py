"""What ``kfac-lab new-plugin`` writes: a component of each slot, and the files around it."""
