"""Reading and writing images, video and audio."""
