"""What other programs wrote about lookups, as counts by directory: one module for each form."""
