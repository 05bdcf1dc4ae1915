"""Entity ids in, model inputs out: the package that owns the contract between training and serving."""
