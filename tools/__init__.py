"""What makes manuals, completions and packages; no part of the program."""
