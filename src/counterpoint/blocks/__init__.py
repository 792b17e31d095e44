"""Mechanisms that know spans and tensors, but no stream by name."""
