"""Networks, one per file; they import nothing but torch."""
