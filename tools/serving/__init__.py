"""Parts of tools/serve_chaos.py and tools/serve_polling.py: clients of a server, and what must hold afterwards."""
