"""Streams on one clock: what a stream is and when it may be seen. No `nn.Module` lives here.

Shape letters, everywhere in the library: B batch rows, S streams, T ticks, W blocks, K codebook
depth, D width, H heads, E head width, V vocabulary; Q queries and K keys inside attention.
"""
