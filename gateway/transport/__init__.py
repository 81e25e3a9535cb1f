"""From a TCP connection to frames, and back: the listener, the handshake, the socket, what waits to be written."""
