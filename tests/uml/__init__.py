"""Runs the NFS tests inside a kernel of their own, as any user: `python -m tests.uml --help`."""
