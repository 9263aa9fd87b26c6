"""Reading and writing for other programs: checkpoints of other libraries, and our models as files of theirs."""
