"""Kernel interfaces the standard library lacks, one dull function per call, named as in its man page."""
