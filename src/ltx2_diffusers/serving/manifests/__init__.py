"""How finished jobs were made, and their making again."""
