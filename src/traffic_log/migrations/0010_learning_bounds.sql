-- Whether a verdict is of a stage's pinned judge, asked by the learner: what a call was judged by under principles of its own
-- corroborates nothing. Verdicts of before are taken for those of calls.
ALTER TABLE verdicts ADD COLUMN pinned BIGINT NOT NULL DEFAULT 0;

-- The digest of the tokenizer that a record's token ids belong to. Empty in records of before, which belong to the model in
-- `settings` (`model`).
ALTER TABLE records ADD COLUMN tokenizer TEXT NOT NULL DEFAULT '';

DROP VIEW trainable;
CREATE VIEW trainable AS
    SELECT id, kind, principal, created_at, bucket, prompt, prompt_token_ids, version, tokenizer
    FROM records
    WHERE retain = 1 AND train = 1;

-- How often the learner died in a stage: a stage that kills it three times is abandoned.
CREATE TABLE stage_deaths (
    stage BIGINT PRIMARY KEY REFERENCES stages (id),
    deaths BIGINT NOT NULL
);
