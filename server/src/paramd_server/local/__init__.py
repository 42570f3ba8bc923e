"""What a server shares with processes of its user on its host, beside gRPC."""
