"""Serving: indexes over HTTP, in an API of our own and in clip-retrieval's, and the web page."""
