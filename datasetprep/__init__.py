"""Raw digits to HDF5, one command per source."""
