"""The explorer: a web page and an HTTP API on the index of one or more runs. Start reading at `__main__.py`."""
