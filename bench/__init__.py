"""Measures gdcore against stock PyTorch: parity, speed, memory, and training on real data."""
