"""Base models: where one is found, the shape that its configuration gives, and the frozen backbone."""
