"""Read an output: status, verify, evaluate, export, report. Nothing here writes one."""
