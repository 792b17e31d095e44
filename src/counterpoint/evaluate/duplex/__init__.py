"""Who spoke when, and live trials of turn-taking."""
