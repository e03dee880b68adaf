"""Results as people read them: tables, published values beside ours."""
