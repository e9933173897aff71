"""What batchrank costs, beside the bare act of sending and beside other tools. `scripts/bench`."""
