"""Spoken orders that lead to a call of a tool: rows of the tool-call layout of SHANKS."""
