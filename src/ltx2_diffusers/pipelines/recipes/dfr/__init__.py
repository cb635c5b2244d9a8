"""Diffusion fidelity rendering (DFR): single frames are made beside a video, which is then refined from them."""
