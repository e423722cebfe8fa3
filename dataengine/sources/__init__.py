"""Sources: foreign tables and tars in, CANDIDATE rows out; nothing is fetched here."""
