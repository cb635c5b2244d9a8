"""A clip made longer, segment by segment."""
