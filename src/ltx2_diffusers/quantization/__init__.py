"""Linear layers that keep their weights in eight-bit floating point, and how a model gets them."""
