"""Commands that make what takes long: clips of many segments."""
