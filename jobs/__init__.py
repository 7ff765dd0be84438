"""Ray job entry points; nothing in echoray imports them."""
