"""How the world talks to hexhail: HTTP, WebSockets and the command line."""
