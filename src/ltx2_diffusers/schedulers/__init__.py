"""Noise schedules and the scheduler class."""
