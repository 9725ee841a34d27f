-- What a named call asked for, so that another request under its name is refused: null in records from before, whose prompt is compared
-- instead. And what a record takes, so that each principal has its share of the disk.
ALTER TABLE records ADD COLUMN request_digest TEXT;
ALTER TABLE records ADD COLUMN bytes BIGINT NOT NULL DEFAULT 0;
UPDATE records SET bytes = 256 + octet_length(prompt) + octet_length(prompt_token_ids) + CAST(COALESCE((
    SELECT SUM(64 + octet_length(text) + octet_length(token_ids) + octet_length(logprobs) + octet_length(sampling))
    FROM samples WHERE samples.record_id = records.id
), 0) AS BIGINT);
CREATE INDEX records_by_principal ON records (principal, id, bytes);
