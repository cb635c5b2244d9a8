"""Pipelines: one recipe per file on a shared base."""
