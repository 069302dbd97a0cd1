"""Raw images to HDF5, one command per source."""
