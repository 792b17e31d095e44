"""Speech: codecs between waveforms and ids, audio files, loudness, augmentation.

Waveforms are float tensors with full scale at 1 and samples in the last dimension. Letters for
shapes: B rows, N samples, C channels, T frames, K codebooks.
"""
