"""Measurements of trained systems: bits a byte, the use of the whole, intervals and reports."""
