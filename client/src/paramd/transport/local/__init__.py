"""The way to a server of the same host and user, which shares its memory."""
