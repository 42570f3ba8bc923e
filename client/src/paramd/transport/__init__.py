"""The only callers of the RPCs: channels, retries, streams, the embedded server.

Importing this package comes before the first `import grpc` (see `fork_support`).
"""

from paramd.transport import fork_support as fork_support
