"""Pipelines that are put together from blocks, on diffusers' machinery for such pipelines."""
