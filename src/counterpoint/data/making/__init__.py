"""Dialogues made on this machine: scripts, timing, layout, synthesis."""
