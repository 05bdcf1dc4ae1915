"""Load on the gateway, through HTTP alone: nothing of ours is imported here."""
