"""Shapes, latent states and the condition items that change them."""
