"""Ray Serve applications; nothing in echoray imports them."""
