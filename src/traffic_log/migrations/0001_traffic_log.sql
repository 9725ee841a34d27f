-- One text for SQLite and PostgreSQL. PostgreSQL knows `blob` by a domain that is made before this runs; truth values are
-- BIGINT because the two databases share no boolean.

CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- `shown` counts the samples of the answer: feedback is about those, not about what trainer and feedback add later.
CREATE TABLE records (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    principal TEXT NOT NULL,
    idempotency_key TEXT,
    created_at BIGINT NOT NULL,
    bucket BIGINT NOT NULL,
    retain BIGINT NOT NULL,
    train BIGINT NOT NULL,
    prompt TEXT NOT NULL,
    prompt_token_ids BLOB NOT NULL,
    redacted BIGINT NOT NULL,
    version TEXT NOT NULL,
    shown BIGINT NOT NULL,
    UNIQUE (principal, idempotency_key)
);
CREATE INDEX records_by_age ON records (created_at, id);

CREATE TABLE samples (
    record_id TEXT NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    place BIGINT NOT NULL,
    token_ids BLOB NOT NULL,
    text TEXT NOT NULL,
    logprobs BLOB NOT NULL,
    seed BIGINT,
    sampling TEXT NOT NULL,
    finish_reason TEXT,
    version TEXT,
    PRIMARY KEY (record_id, place)
);

CREATE TABLE verdicts (
    record_id TEXT NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    place BIGINT NOT NULL,
    a BIGINT NOT NULL,
    b BIGINT NOT NULL,
    p_first DOUBLE PRECISION NOT NULL,
    p_second DOUBLE PRECISION NOT NULL,
    p DOUBLE PRECISION NOT NULL,
    consistent BIGINT NOT NULL,
    label_mass DOUBLE PRECISION NOT NULL,
    principles TEXT NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (record_id, place)
);

CREATE TABLE pairs (
    record_id TEXT NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    place BIGINT NOT NULL,
    chosen BIGINT NOT NULL,
    rejected BIGINT NOT NULL,
    margin DOUBLE PRECISION NOT NULL,
    source TEXT NOT NULL,
    principles TEXT NOT NULL,
    PRIMARY KEY (record_id, place)
);

-- `slot` is the sample a thumb or an edit is about, -1 for a preference; `written` is the sample an edit became.
CREATE TABLE feedback (
    record_id TEXT NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    principal TEXT NOT NULL,
    kind TEXT NOT NULL,
    slot BIGINT NOT NULL,
    body TEXT NOT NULL,
    written BIGINT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (record_id, principal, kind, slot)
);
CREATE INDEX feedback_by_principal ON feedback (principal);

-- What is left of a deleted record.
CREATE TABLE tombstones (
    record_id TEXT PRIMARY KEY,
    deleted_at BIGINT NOT NULL
);

CREATE TABLE trainer (
    one BIGINT PRIMARY KEY,
    holder TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
INSERT INTO trainer (one, holder, epoch, expires_at) VALUES (1, '', 0, 0);

CREATE TABLE stages (
    id BIGINT PRIMARY KEY,
    epoch BIGINT NOT NULL,
    reference TEXT NOT NULL,
    state TEXT NOT NULL,
    outcome TEXT,
    opened_at BIGINT NOT NULL,
    closed_at BIGINT
);

-- A row belongs to one stage for good: stages train on disjoint data. No reference to `records`: lineage outlives them.
CREATE TABLE stage_rows (
    record_id TEXT PRIMARY KEY,
    stage BIGINT NOT NULL REFERENCES stages (id)
);
CREATE INDEX stage_rows_by_stage ON stage_rows (stage);

CREATE TABLE generations (
    id TEXT PRIMARY KEY,
    parent TEXT NOT NULL,
    reference TEXT NOT NULL,
    stage BIGINT,
    manifest TEXT NOT NULL,
    gates TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE pointers (
    name TEXT PRIMARY KEY,
    generation TEXT NOT NULL
);
INSERT INTO pointers (name, generation) VALUES
    ('policy', 'base'), ('train', 'base'), ('reference', 'base'), ('judge', 'base'), ('canary', 'base');

-- The end of the chain: updating its row makes writers of events wait for each other.
CREATE TABLE chain (
    one BIGINT PRIMARY KEY,
    sequence BIGINT NOT NULL,
    hash TEXT NOT NULL
);
INSERT INTO chain (one, sequence, hash) VALUES
    (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TABLE events (
    sequence BIGINT PRIMARY KEY,
    body TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
);

-- The only way to a row that may be trained on.
CREATE VIEW trainable AS
    SELECT id, kind, principal, created_at, bucket, prompt, prompt_token_ids, version
    FROM records
    WHERE retain = 1 AND train = 1;
