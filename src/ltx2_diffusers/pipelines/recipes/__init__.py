"""One pipeline per task."""
