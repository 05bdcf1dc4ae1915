"""The gateway: HTTP request in, explained prediction out."""
