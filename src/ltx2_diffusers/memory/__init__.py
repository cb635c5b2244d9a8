"""Memory: what a generation needs, chosen to fit a device, and models whose weights wait elsewhere."""
