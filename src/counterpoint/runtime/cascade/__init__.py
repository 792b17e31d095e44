"""A conversation of separate engines: one hears, one thinks and answers, one speaks."""
