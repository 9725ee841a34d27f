-- What callers said of a record's answers is learned from once, whether or not a stage used its prompt. As with `stage_rows`, lineage
-- outlives the records.
CREATE TABLE stage_feedback (
    record_id TEXT PRIMARY KEY,
    stage BIGINT NOT NULL REFERENCES stages (id)
);
CREATE INDEX stage_feedback_by_stage ON stage_feedback (stage);
