"""Sessions and sampling: running a system tick by tick, on its device and without a network."""
