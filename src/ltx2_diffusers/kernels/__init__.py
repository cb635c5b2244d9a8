"""Computations with a kernel of their own on a GPU, each beside a twin in PyTorch that gives the same bits anywhere."""
