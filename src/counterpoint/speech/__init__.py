"""Speech: codecs between waveforms and ids, audio files, loudness, augmentation.

Waveforms are float tensors with full scale at 1, samples last. Letters: B rows, N samples, C
channels, T frames, K codebooks.
"""
