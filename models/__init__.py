"""One network a file, torch only."""
