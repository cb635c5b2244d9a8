"""The `ltx2` command."""
