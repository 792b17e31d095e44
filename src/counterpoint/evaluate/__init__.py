"""Measurements of trained systems: bits/byte, the use of the whole, intervals, figures, report."""
