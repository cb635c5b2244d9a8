"""Networks of LTX-2."""
