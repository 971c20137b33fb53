"""How fast models train and generate, and what that is spent on."""
