"""Families of models beside LTX-2, which run through the same engine; one folder each."""
