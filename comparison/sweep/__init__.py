"""Sweeps: the runs of a grid, or of random draws, over values of any run file."""
