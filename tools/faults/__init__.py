"""Parts of tools/chaos.py and tools/serve_chaos.py: faults in processes, and what must hold afterwards."""
