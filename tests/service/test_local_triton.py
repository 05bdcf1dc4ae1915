"""A real tritonserver of our own: its life and death, whoever ends what."""

from pathlib import Path

from service.local_triton import LocalTriton


def test_it_is_ready_when_the_block_begins(triton: LocalTriton) -> None:
    triton.wait_ready()

    assert triton.is_running
