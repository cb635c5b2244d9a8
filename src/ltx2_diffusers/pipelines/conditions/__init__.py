"""What a generation can be held to."""
