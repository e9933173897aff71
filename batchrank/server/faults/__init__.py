"""Faults that a test asks the local server for."""
