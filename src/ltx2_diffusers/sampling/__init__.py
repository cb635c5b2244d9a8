"""The denoiser, the samplers and the one denoising loop."""
