"""Original and diffusers checkpoint layouts, and the way between them."""
