//! Learning from traffic: the log's prompts to on-policy pairs, pairs to updates, updates to served versions.
