"""The gRPC face of the server: check, decode, call the core, encode. No arithmetic, no state."""
