"""Training of LTX-2: adapters, the whole transformer, and every network from nothing."""
