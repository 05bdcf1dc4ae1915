"""Other systems beside ours, on the same store, the same model and one core: `make bench PEERS=1`.

encode.py, model.py, job.py and the *_app.py and *_runtime.py run in the peers' own virtual environments, which have
nothing of ours: what they import is NumPy, ONNX Runtime, Feast and the peer. catalog.py says how each is started and
asked, rows.py measures, venvs.py installs.
"""
