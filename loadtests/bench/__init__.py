"""`make bench`: the performance rows of the gateway, each a ratio inside one run on one machine.

    python -m loadtests.bench --home .rapport/bench          # everything; --help names the options
    python -m loadtests.bench --rows throughput,one_client --seconds 2 --rounds 1

It speaks HTTP to processes that it starts itself, pinned to one core, and drives them from the other.
"""
