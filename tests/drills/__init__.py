"""Durability, money, limits: every promise of the project, broken on purpose until it would show.

A drill does one kind of harm, many times, to real processes, and compares what is left with an
undisturbed run. `scripts/drill` runs the long forms, `test_promises.py` the quick ones. Each module
may have `DRILLS`, each drill the numbers of its promises.
"""
