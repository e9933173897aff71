"""Rows into request plans. Pure: the same rows and limits give the same plans."""
