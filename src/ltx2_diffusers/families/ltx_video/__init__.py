"""LTX-Video 0.9.0 to 0.9.8, in its sizes 2B and 13B: diffusers' own networks on this package's engine."""
