"""What keeps the archive sound over the years: proofs, repair, compaction, retention."""
