"""What clips take of memory, foretold before they are queued."""
