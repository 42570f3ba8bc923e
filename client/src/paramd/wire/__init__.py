"""What client and server agree on about bytes: dtypes, messages, chunk streams, errors."""
