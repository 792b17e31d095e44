"""Neural building blocks. They work on tensors and spans and know no stream by name."""
