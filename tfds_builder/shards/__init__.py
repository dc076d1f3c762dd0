"""From rows of a manifest to files of records: the plan, the shards, what was found on the way."""
