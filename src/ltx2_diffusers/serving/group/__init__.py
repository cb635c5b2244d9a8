"""Clips that several processes make together, each on a GPU of its own: `ltx2 serve --ranks`."""
