"""Commands that fit a model to a card."""
