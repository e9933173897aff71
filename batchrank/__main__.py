"""`python -m batchrank`: the same as the command `batchrank`."""

from batchrank.cli import main

main()
