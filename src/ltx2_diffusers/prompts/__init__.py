"""From text to what the streams read."""
