"""Speech: recordings of dialogues as rows of frames."""
