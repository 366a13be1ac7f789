"""Where planned nodes are written: each sink is a folder here, with a class as protocol.py asks for."""
