"""Pictures, in every form that they come in: files, subjects, tar shards, HDF5 stores, parquet."""
