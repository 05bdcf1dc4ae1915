"""Reading features while a customer waits: the plan, the wire format, and the readers."""
