"""Getting image bytes: fetching them from strangers, checking them, and deciding what is stored."""
