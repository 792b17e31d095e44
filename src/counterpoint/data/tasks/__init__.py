"""Generators with exact scorers and published floors."""
