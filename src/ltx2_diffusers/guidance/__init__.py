"""Guidance: pure functions of predictions, and the perturbations that guided passes use."""
