"""Memory: where weights lie while they are not computed with, what a generation needs, and plans that fit a device."""
