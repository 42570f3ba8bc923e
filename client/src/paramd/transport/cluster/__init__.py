"""Calls to the shards of one cluster, as if they were one server.

Which shard holds what is `paramd.placement`'s to say. Here calls are taken apart, sent to the
shards in parallel, and their answers put together.
"""
