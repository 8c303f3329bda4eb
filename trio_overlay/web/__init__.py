"""The browser client and the pages the server shows."""
