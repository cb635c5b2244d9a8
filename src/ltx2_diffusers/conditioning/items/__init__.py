"""Condition items: each maps a latent state to one that is held to something given."""
