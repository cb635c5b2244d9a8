"""Storyboards as jobs: what a request holds, its checks, and the making of the film."""
