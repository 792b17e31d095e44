"""Making dialogues: scripts, timing, layout and speech synthesis."""
