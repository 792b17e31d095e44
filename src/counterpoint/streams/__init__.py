"""Streams on one clock: what a stream is and when it may be seen. No `nn.Module` lives here.

The whole library uses these letters for shapes: B batch rows, S streams, T ticks, W blocks,
K codebook depth, D width, H heads, E head width, V vocabulary. Inside attention, Q counts queries
and K counts keys.
"""
