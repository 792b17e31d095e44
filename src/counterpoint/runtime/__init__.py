"""Sessions and sampling: a system run tick by tick, on its device and without a network."""
