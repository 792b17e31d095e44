"""Recipes: complete runs and studies as Python functions."""
