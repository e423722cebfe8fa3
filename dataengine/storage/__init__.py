"""The only code that touches a store: objects, create-once, run directories, Parquet parts and the tar format."""
