"""The protocol of every benchmark: what a row is, how it is run in pairs, kept, and told."""
