"""Files on the server's side."""
