"""Long clips of several shots: what they are to show, how shots become segments, and how these are made and kept."""
