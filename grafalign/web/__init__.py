"""The one way to what is elsewhere: addresses, guarded connections, proxies, retries, byte ranges."""
