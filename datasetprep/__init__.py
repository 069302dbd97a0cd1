"""Raw digits to HDF5: one command a source."""
