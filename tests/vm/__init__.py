"""Runs the fs-verity tests inside a virtual machine, as any user: `python -m tests.vm --help`."""
