"""The networks of a run: loaded, frozen, quantised, adapted, streamed."""
