"""Video of high dynamic range from video of standard range."""
