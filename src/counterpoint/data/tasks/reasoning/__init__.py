"""Questions with step-by-step reasoning: generators, a check of every step, corpora."""
