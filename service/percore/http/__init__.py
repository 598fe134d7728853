"""HTTP/1.1 on asyncio, for the gateway's port and the status server's: connections, their bounds, requests and answers."""
