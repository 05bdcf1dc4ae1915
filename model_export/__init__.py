"""Dataset to release, one file a step: dataset, train, evaluate, export, verify, publish."""
