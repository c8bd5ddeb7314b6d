"""A memory that people and programs use while it runs: the teaching page in a browser, and the server for machines.

``teaching`` is the logic of the page, without a web library; ``page`` is its Gradio skin. ``serving`` is the logic of the server;
``http_server`` is its FastAPI skin, and ``client`` talks to it.
"""
