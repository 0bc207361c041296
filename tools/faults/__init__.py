"""Parts of tools/chaos.py: faults in the processes of a batch, and what must hold afterwards."""
