"""A step of training for every network of LTX-2."""
