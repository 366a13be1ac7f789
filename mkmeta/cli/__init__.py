"""The command line: one module per verb, plus what they share."""
