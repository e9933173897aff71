"""The scores of earlier outputs."""
