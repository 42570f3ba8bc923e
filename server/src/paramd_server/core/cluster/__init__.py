"""The shards of a cluster: what their coordinator decides, and how they follow it."""
