"""Memory: where weights lie while nothing computes with them."""
