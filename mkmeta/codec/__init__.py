"""Bytes to model and back. Nothing in this layer opens a file."""
