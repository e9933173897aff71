"""`python -m batchrank`: the same as the command `batchrank`."""

from batchrank.cli.main import main

main()
