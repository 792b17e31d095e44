"""Spoken maths: somebody says a problem and a solution aloud, half of the time with an error."""
