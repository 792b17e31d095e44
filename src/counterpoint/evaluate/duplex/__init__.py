"""Turn-taking: who spoke when, and live trials."""
