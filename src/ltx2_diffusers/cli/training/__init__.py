"""`ltx2 data` and `ltx2 train`."""
