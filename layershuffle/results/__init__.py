"""What was found: the record, its tables and its pictures."""
